"""The kernels under the sanitizers of the compiler, and with each of their allocations failed in turn.

    python -m tests.sanitizers                  # all four below
    python -m tests.sanitizers address          # AddressSanitizer and UndefinedBehaviorSanitizer
    python -m tests.sanitizers undefined        # UndefinedBehaviorSanitizer alone, which is quick
    python -m tests.sanitizers thread           # ThreadSanitizer, with four threads
    python -m tests.sanitizers allocations      # allocation 1, 2, ... fails, under UndefinedBehaviorSanitizer

Each first has to see a fault that is planted (planted.cpp); then every operation has to give the bits of the reference
on every instruction set that this processor has, the golden files have to decode to their pixels, and with `--seconds`
hostile streams and files are read for that long (`tests.fuzz`). It takes g++ with its sanitizers, on Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hpcmcodec.native import build

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
MADE = ROOT / "build" / "sanitizers"
KINDS = ("address", "undefined", "thread", "allocations")
FLAGS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "undefined": ("-fsanitize=undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
    "allocations": (
        "-fsanitize=undefined",
        "-fno-sanitize-recover=all",
        *(f"-Wl,--wrap={name}" for name in ("malloc", "calloc", "aligned_alloc", "_Znwm", "_ZnwmRKSt9nothrow_t")),
    ),
}
RUNTIME = {"address": "libasan.so", "thread": "libtsan.so"}
# What a sanitizer says of the planted fault.
SAYS = {
    "address": ("planted_address", "heap-buffer-overflow"),
    "undefined": ("planted_undefined", "signed integer overflow"),
    "thread": ("planted_thread", "data race"),
    "allocations": ("planted_allocation", "null pointer"),
}
THREADS = 4


def built(kind: str, sources: list[Path], name: str) -> Path:
    """A library of these sources with the flags of a sanitizer, made unless it is there."""
    compiler = build.find_compiler()
    if compiler is None:
        raise SystemExit("no C++ compiler")
    if kind == "allocations":
        sources = [*sources, HERE / "allocator.cpp"]
    flags = [*(flag for flag in build.FLAGS if flag != "-O2"), "-O1", "-g", *FLAGS[kind]]
    key = build.source_hash(Path("/"), [str(p)[1:] for p in [*sources, *(ROOT / "kernels").glob("*.h")]], flags)
    library = MADE / f"{name}-{kind}-{key}.so"
    if not library.exists():
        MADE.mkdir(parents=True, exist_ok=True)
        target = MADE / f".{os.getpid()}.so"
        command = [
            *compiler.command,
            *flags,
            "-shared",
            '-DHPCM_SOURCE="sanitized"',
            *map(str, sources),
            "-o",
            str(target),
        ]
        build.run(command, MADE, 1800)
        target.replace(library)
    return library


def environment(kind: str) -> dict[str, str]:
    """What a process needs that loads such a library."""
    found = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(THREADS), "PYTHONMALLOC": "malloc"}
    found["OPENBLAS_NUM_THREADS"] = "1"  # its threads are not instrumented
    found |= {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    found |= {"TSAN_OPTIONS": "halt_on_error=1:exitcode=66"}
    compiler = build.find_compiler()
    if kind in RUNTIME and compiler:
        runtime = build.run([*compiler.command, f"-print-file-name={RUNTIME[kind]}"], MADE, 60).strip()
        if not Path(runtime).is_absolute():
            raise SystemExit(f"the compiler has no {RUNTIME[kind]}")
        found["LD_PRELOAD"] = runtime
    return found


def run(kind: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    # ThreadSanitizer wants addresses where it expects them.
    fixed = ["setarch", os.uname().machine, "-R"] if kind == "thread" else []
    return subprocess.run(
        [*fixed, sys.executable, *map(str, arguments)],
        env=environment(kind),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def sees_its_fault(kind: str) -> None:
    """Raises SystemExit where a planted fault goes unseen."""
    function, words = SAYS[kind]
    library = built(kind, [HERE / "planted.cpp"], "planted")
    fail = "library.hpcm_fail(ctypes.c_int64(1)); " if kind == "allocations" else ""
    code = f"import ctypes; library = ctypes.CDLL({str(library)!r}); {fail}print('unseen', library.{function}(9))"
    done = run(kind, "-c", code)
    if done.returncode == 0 or words not in done.stderr:
        raise SystemExit(f"{kind}: the planted fault was not seen: {done.stdout}{done.stderr[-2000:]}")
    print(f"{kind}: sees the planted fault ({words})", flush=True)


def sanitize(kind: str, seconds: float, seed: int) -> None:
    """Raises SystemExit where a sanitizer sees anything in the kernels, or results are wrong."""
    MADE.mkdir(parents=True, exist_ok=True)
    sees_its_fault(kind)
    library = built(kind, [ROOT / "kernels" / unit for unit in build.UNITS], "kernels")
    steps: list[tuple[object, ...]] = [("-m", "tests.sanitizers", kind, "--inside", library)]
    if seconds and kind in ("address", "undefined"):
        os.environ["HPCM_FUZZ_LIBRARY"] = str(library)
        for what in ("streams", "files"):
            steps.append(("-m", "tests.fuzz", what, "--sanitized", "--seconds", seconds, "--seed", seed))
    for step in steps:
        done = run(kind, *step)
        if done.returncode:
            raise SystemExit(f"{kind}: {' '.join(map(str, step))}\n{done.stdout[-3000:]}{done.stderr[-6000:]}")
        print(f"{kind}: {done.stdout.strip()}", flush=True)


# ------------------------------------------------------------------------------------- in the process with the library


@contextlib.contextmanager
def kernels_of(library: str) -> Iterator[Any]:
    """The kernels of a library, as those that `loader.find` finds."""
    from hpcmcodec.native import loader
    from hpcmcodec.native.library import Kernels

    kernels = Kernels(ctypes.CDLL(library), THREADS)
    status = loader.Status(kernels, "prebuilt", Path(library), (), False)
    with patch.object(loader, "find", lambda **options: status):
        yield kernels


def operations(kernels: Any) -> int:
    """Every operation on every instruction set, and the golden files; returns how many sets there are."""
    from hpcmcodec.native import selftest
    from hpcmcodec.native.compiled import KernelOps

    for variant in kernels.variants:
        kernels.choose(variant)
        wrong = selftest.differences(lambda tensors: KernelOps(kernels, tensors, selftest.GRIDS))
        if wrong:
            raise SystemExit(f"{variant}: these differ from the reference: {wrong}")
        golden_files()
    return len(kernels.variants)


def golden_files() -> None:
    import json

    from hpcmcodec import codec
    from hpcmcodec.engines import base
    from tests import tiny
    from tools.hashes import sha256

    base.forget()
    said = json.loads((tiny.DATA / "golden.json").read_text(encoding="utf-8"))
    with tiny.installed():
        for name, facts in said.items():
            data = (tiny.DATA / f"{name}.hpcm").read_bytes()
            if sha256(codec.decode_latents(data)) != facts["y_hat"]:
                raise SystemExit(f"{name} has other latents")
            codec.decode_picture(data)


def allocations(kernels: Any) -> str:
    """Each allocation failed in turn, in a child each: a right result or one clear error."""
    import numpy as np

    from hpcmcodec import codec
    from hpcmcodec.errors import UnsupportedError
    from hpcmcodec.native import selftest
    from hpcmcodec.native.compiled import KernelOps
    from tests import tiny

    fail, count = kernels.library.hpcm_fail, kernels.library.hpcm_allocations
    fail.argtypes, count.restype = (ctypes.c_int64,), ctypes.c_int64
    data = (tiny.DATA / "tiny-131x77.hpcm").read_bytes()
    with tiny.installed():
        whole = codec.decode_picture(data).pixels

    def decoding() -> str:
        with tiny.installed():
            try:
                right = np.array_equal(codec.decode_picture(data).pixels, whole)
            except UnsupportedError as error:
                return "refused" if str(error) == "not enough memory for an image of this size" else f"said {error}"
        return "right" if right else "wrong pixels"

    def operating() -> str:
        try:
            wrong = selftest.differences(lambda tensors: KernelOps(kernels, tensors, selftest.GRIDS))
        except MemoryError as error:
            return "refused" if str(error) else "no words"
        return f"wrong: {wrong}" if wrong else "right"

    endings = [ending for work in (decoding, operating) for ending in each_failed(work, fail, count)]
    bad = {ending for ending in endings if ending not in ("right", "refused")}
    if bad or "refused" not in endings:
        raise SystemExit(f"an allocation that fails ends in: {bad or 'nothing'}")
    return (
        f"{len(endings)} allocations failed in turn: {endings.count('refused')} refused, {endings.count('right')} right"
    )


def each_failed(work: Callable[[], str], fail: Any, count: Any) -> list[str]:
    """How `work` ends where allocation 1, 2, ... fails, each in a child that starts its pool of threads anew."""

    def in_child(n: int) -> str:
        reader, writer = os.pipe()
        if not (child := os.fork()):
            fail(n)
            ending = work()
            os.write(writer, f"{count()} {ending}"[:4000].encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        return said if status == 0 and said else f"0 ended with status {status}"

    total = int(in_child(0).split()[0])
    return [in_child(n).partition(" ")[2] for n in range(1, total + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", metavar="LIBRARY", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"{unknown.pop()} is not one of {', '.join(KINDS)}")
    if options.inside:
        with kernels_of(options.inside) as kernels:
            if options.kinds == ["allocations"]:
                print(allocations(kernels))
            else:
                print(f"clean: all operations and the golden files, instruction sets: {operations(kernels)}")
        return
    for kind in options.kinds or KINDS:
        sanitize(kind, options.seconds, options.seed)


if __name__ == "__main__":
    main()
