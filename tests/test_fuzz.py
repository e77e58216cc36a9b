"""What the attacks of `tests/fuzz` have found stays mended, and each attack reaches what it is after."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hpcmcodec.native import build
from tests.fuzz import __main__ as fuzz
from tests.sanitizers import __main__ as sanitizers

ROOT = Path(__file__).parent.parent
CASES = sorted(path for path in fuzz.FOUND.glob("*") if path.name.partition("-")[0] in fuzz.KINDS)


@pytest.mark.parametrize("case", CASES, ids=[path.name for path in CASES])
def test_case_that_was_found_ends_in_a_result_or_an_error(case: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fuzz.tried(fuzz.target_of(case.name.partition("-")[0]), case.read_bytes())


@pytest.mark.parametrize(
    ("kind", "count", "reached"),
    [
        ("headers", 400, {"read", "cut", "InputError", "UnsupportedError"}),
        ("streams", 40, {"read", "IntegrityError"}),
        ("files", 30, {"png", "IntegrityError"}),
        ("images", 60, {"shown", "InputError"}),
    ],
)
def test_attack_gets_behind_the_checks_and_is_the_same_for_the_same_seed(
    kind: str, count: int, reached: set[str]
) -> None:
    target = fuzz.target_of(kind)
    endings: Counter[str] = Counter()
    for number in range(count):
        data = target.make(random.Random(f"5 {number}"))
        assert data == target.make(random.Random(f"5 {number}"))
        endings[fuzz.tried(target, data)] += 1
    assert reached <= set(endings) | ({"png"} if set(endings) & {"jpg", "tif", "bmp", "ppm", "webp"} else set())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise KeyError('foreign')", "KeyError: 'foreign'"),
        ("raise HpcmError('two\\nlines')", "an error of more lines than one"),
        ("import time, itertools; all(time.process_time() < 9 for _ in itertools.count())", "seconds"),
        ("bytearray(400 << 20)[::4096]", "kB of memory"),
        ("import os; os.abort()", "the process ended with -6"),
    ],
)
def test_foreign_error_slowness_memory_and_death_are_findings(fault: str, words: str, tmp_path: Path) -> None:
    """The control: an attack that never finds anything would pass as well."""
    code = (
        "import sys, pathlib, tests.fuzz.__main__ as fuzz, tests.fuzz.headers as target\n"
        "from hpcmcodec.errors import HpcmError\n"
        f"fuzz.FOUND = pathlib.Path({str(tmp_path)!r})\n"
        "def check(data):\n"
        f"    {fault}\n"
        "target.check = check\n"
        "fuzz.LOOK_EVERY = {}\n"
        "sys.exit(fuzz.main())\n"
    )
    script = tmp_path / "fuzz.py"
    script.write_text(code)
    options = ["headers", "--count", "1", "--counter", str(tmp_path / "counter")]
    (tmp_path / "counter").write_bytes(bytes(8))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=env)
    assert done.returncode == (1 if words[:3] != "the" else -6), done.stderr
    if done.returncode == 1:
        assert words in done.stdout
        assert len(list(tmp_path.glob("headers-*"))) == 1


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
@pytest.mark.parametrize("kind", sanitizers.KINDS)
def test_kernels_are_clean_under_the_sanitizers(kind: str) -> None:
    if build.find_compiler() is None:
        pytest.skip("no C++ compiler")
    sanitizers.sanitize(kind, 20, 0)
