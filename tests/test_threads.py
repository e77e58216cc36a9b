"""How many threads are used: affinity, control groups and OMP_NUM_THREADS, and one answer for all who ask."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcmcodec import threads


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of six cores without control groups: its /sys/fs/cgroup, beside which /proc/self/cgroup is `cgroup`."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(threads, "_PROC", tmp_path / "cgroup")
    monkeypatch.setattr(threads, "_CGROUPS", tmp_path / "sys")
    return tmp_path / "sys"


def in_group(machine: Path, line: str, **files: str) -> None:
    """Puts the process in a group; files: path below /sys/fs/cgroup -> content, with `__` for `/` and `_` for `.`."""
    machine.with_name("cgroup").write_text(f"9:name=systemd:/x\n{line}\n")
    for name, content in files.items():
        path = machine / name.replace("__", "/").replace("cpu_max", "cpu.max").replace("cpu_cfs", "cpu.cfs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("", 6),
        ("2", 2),
        (" 3 ", 3),
        ("4,2", 4),
        (" 2 , 8", 2),
        ("64", 6),
        ("99999999999", 6),
        ("9" * 5000, 6),
        ("0", 6),
        ("-1", 6),
        ("none", 6),
        ("2.5", 6),
        ("\u00b2", 6),
        (",", 6),
    ],
)
@pytest.mark.usefixtures("machine")
def test_environment_lowers_the_number_of_cores_and_never_raises_it(
    setting: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert threads.count() == expected


def test_without_affinity_all_cores_count(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(threads.os, "sched_getaffinity")
    for cores, expected in ((8, 8), (None, 1)):
        monkeypatch.setattr(threads.os, "cpu_count", lambda cores=cores: cores)
        assert threads.count() == expected


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("max 100000", 6), ("9000000 100000", 6), ("", 6)],
)
def test_quota_of_the_control_group_limits(machine: Path, quota: str, expected: int) -> None:
    in_group(machine, "0::/", cpu_max=f"{quota}\n")
    assert threads.count() == expected


def test_quota_of_a_group_around_limits_too(machine: Path) -> None:
    in_group(machine, "0::/slice/unit", slice__cpu_max="300000 100000", slice__unit__cpu_max="max 100000")
    assert threads.count() == 3
    (machine / "slice" / "unit" / "cpu.max").write_text("100000 100000")
    assert threads.count() == 1


def test_group_that_is_not_visible_is_looked_for_at_the_root(machine: Path) -> None:
    in_group(machine, "0::/docker/0123", cpu_max="200000 100000")
    assert threads.count() == 2


@pytest.mark.parametrize(("quota", "expected"), [("250000", 3), ("-1", 6)])
@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_quota_of_the_first_version_of_control_groups(
    machine: Path, controllers: str, quota: str, expected: int
) -> None:
    in_group(machine, f"4:{controllers}:/job", cpu__job__cpu_cfs_quota_us=quota, cpu__job__cpu_cfs_period_us="100000")
    assert threads.count() == expected


def test_module_imports_the_standard_library_alone() -> None:
    code = "import sys, hpcmcodec.threads; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.decode().split()
    assert not set(loaded) & {"numpy", "onnxruntime", "PIL", "click", "torch"}


def test_absurd_number_in_the_environment_codes(photos: dict[str, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hpcmcodec", "encode", str(photos["chelsea"]), "-o", str(tmp_path / "a.hpcm")]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "99999999999"}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
