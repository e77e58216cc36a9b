"""How many threads onnxruntime, the compiled kernels, numpy's BLAS and the jobs of `hpcm eval` use; and the lock under
which things are loaded.

This module imports the standard library alone. Limits that a system does not have (affinity, control groups) are passed
over.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

__all__ = ["can_start", "control_groups", "cores", "count", "loading"]

_PROC = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")

loading = threading.RLock()
"""Held while something is loaded once for the process: engines, graphs, kernels, the entropy coder.

A fork waits for it, for a second or less. So no child starts with something half loaded, or with this lock held by a
thread that exists in its parent only.
"""

if hasattr(os, "register_at_fork"):  # not Windows
    os.register_at_fork(before=loading.acquire, after_in_parent=loading.release, after_in_child=loading.release)


def count() -> int:
    """The number of threads to use, at least 1: one for each of `cores`, or fewer where OMP_NUM_THREADS says so.

    The first number of OMP_NUM_THREADS counts ("4,2" is OpenMP's form for nested teams); a value that is no positive
    integer is passed over.
    """
    limits = [cores()]
    with contextlib.suppress(ValueError):  # not set, not a number, or one of thousands of digits
        limits.append(int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0]))
    return min(limit for limit in limits if limit > 0)


def cores() -> int:
    """The cores that this process may use, at least 1.

    They are those of its affinity (all cores where the system has no affinity), limited by the quota of its control
    group, rounded up: 1.5 cores count as two.
    """
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    limits += [math.ceil(quota) for quota in map(_quota, control_groups("cpu")) if quota is not None]
    return min(limit for limit in limits if limit > 0)


def can_start(n: int) -> bool:
    """Whether the system lets this process start `n` more threads that run at the same time."""
    end, started = threading.Event(), []
    try:
        for _ in range(n):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
        return True
    except RuntimeError:
        return False
    finally:
        end.set()
        for thread in started:
            thread.join()  # so that later threads take over its memory in the C library, 64 MB of addresses


def control_groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of the groups around it, in which a controller's limits stand.

    Version 2 of control groups has one hierarchy for all controllers, version 1 one for each. A process that sees no
    group but its own finds it at the root of the hierarchy. Some of the folders may not be there.
    """
    try:
        lines = _PROC.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux, or /proc is not mounted
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            mounts = [_CGROUPS, _CGROUPS / "unified"]
        elif controller in controllers.split(","):
            mounts = [_CGROUPS / controllers, _CGROUPS / controller]
        else:
            continue
        inner = path.strip("/")
        for group in [inner, *map(str, Path(inner).parents)] if inner else ["."]:
            for mount in mounts:
                yield mount / group


def _quota(folder: Path) -> float | None:
    """The limit of one control group, in cores; None where the group has no limit.

    Version 2 has "QUOTA PERIOD" in cpu.max, with "max" for no quota. Version 1 has two files, with -1 for no quota.
    """
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
            cores = int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
            continue
        if cores > 0:
            return cores
    return None
