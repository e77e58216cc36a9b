"""What a picture will take in memory, estimated from its size, and what this process and its children may take.

The coefficients lie above the peaks of resident memory that processes with one thread had for pictures of 0.1 to 12
megapixels, 0.4, 2 and 12 with effort, where the gradient of what eyes see takes the most.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from pathlib import Path

from hpcmcodec import threads
from hpcmcodec.container import read_header
from hpcmcodec.errors import HpcmError

SHARE = 0.8
"""Of what is free or allowed, the share that is used: estimates are estimates, and other programs go on."""

_MEMINFO = Path("/proc/meminfo")
_START_BYTES = 1 << 16

# Bytes of a process that has loaded what it needs, and for each pixel above that.
BASE = {"encode": 160 << 20, "effort": 200 << 20, "decode": 90 << 20, "verify": 90 << 20, "read": 24 << 20}
PER_PIXEL = {"encode": 90, "effort": 130, "decode": 32, "verify": 32, "read": 0}
# With effort a whole strip of the transforms is held with all that its gradient needs.
_STRIP_PIXELS, _PER_PIXEL_OF_STRIP = 1 << 22, {"effort": 420}
_UNREAD = 8  # bytes for each byte of a file whose header says no size


def available() -> int | None:
    """Bytes that this process and its children may take: free ones, or fewer where a control group says so.

    None where the system does not say.
    """
    free = _free()
    limits = [] if free is None else [free]
    limits += [left for left in map(_left, threads.control_groups("memory")) if left is not None]
    return max(0, min(limits)) if limits else None


def _free() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return None


def _left(folder: Path) -> int | None:
    """Bytes that a control group still may take; None where it has no limit.

    The pages of files that the system would give up count as used in its figures, and as free here.
    """
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            left = int((folder / limit).read_text(encoding="ascii")) - int((folder / used).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such file, or "max"
            continue
        with contextlib.suppress(OSError, ValueError):
            for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines():
                if line.startswith("inactive_file "):
                    left += int(line.split()[1])
        return left
    return None


def needed(kind: str, path: str) -> int:
    """Bytes that a process takes for this file, at its peak, with what it takes without one.

    kind: "encode", "effort" (encode with effort or a target in dB), "decode", "verify" (decode, too), or "read".
    """
    pixels, n_bytes = size_of(path)
    strip = _PER_PIXEL_OF_STRIP.get(kind, 0) * min(pixels, _STRIP_PIXELS)
    return BASE[kind] + n_bytes + strip + (PER_PIXEL[kind] * pixels if pixels else _UNREAD * n_bytes)


def size_of(path: str) -> tuple[int, int]:
    """Pixels that the file's header announces, 0 where it says none, and the bytes of the file."""
    try:
        facts = Path(path).stat()
        if not stat.S_ISREG(facts.st_mode):  # opening a pipe waits for its other end
            return 0, 0
        n_bytes = facts.st_size
        with Path(path).open("rb") as file:
            start = file.read(32)
            file.seek(0)
            if start.startswith(b"\x89PNG") and len(start) >= 24:
                width, height = struct.unpack(">II", start[16:24])
                return width * height, n_bytes
            if start.startswith(b"\x8bHPC"):
                header, _ = read_header(file, max_pixels=None, max_side=None)
                return header.width * header.height, n_bytes
            return _by_pillow(path), n_bytes
    except (OSError, HpcmError):
        return 0, 0


def _by_pillow(path: str) -> int:
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return image.width * image.height
    except Exception:  # noqa: BLE001  the worker will say what is wrong with it
        return 0
