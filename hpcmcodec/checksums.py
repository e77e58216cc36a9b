"""SHA-256 of the files of a folder, in a list beside them, so that damage is found before a file is used.

    <64 hexadecimal digits>  <file name>     one line per file, in order of names; `sha256sum -c SHA256SUMS` checks them
    # CRC-32 <8 hexadecimal digits>          CRC-32 of the lines above, since the list itself may be damaged

`weights/SHA256SUMS` comes with the weights; their export writes it. The digests guard against faulty disks and against
transfers and installations that were cut short, not against somebody who can write to the folder.

hashlib is imported only when a file is hashed: `hpcm info` reads the list, but has to start quickly.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from hpcmcodec.errors import InstallationError

if TYPE_CHECKING:
    import io
    from typing import BinaryIO

__all__ = ["LIST", "read", "sha256", "verify", "write"]

LIST = "SHA256SUMS"
MEND = "reinstall hpcmcodec, or restore the file from the repository"
_PIECE = 1 << 20  # bytes read at a time


def read(folder: Path) -> dict[str, str] | None:
    """File name -> SHA-256 in hexadecimal, as the folder's list says; None where there is no list.

    Raises InstallationError where the list is damaged.
    """
    path = folder / LIST
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InstallationError(f"{path} cannot be read: {error.strerror or error}; {MEND}") from error
    lines = [line.split("  ", 1) for line in text.decode("ascii", "replace").splitlines()[:-1]]
    digests = {line[-1]: line[0] for line in lines}
    if _text(digests) != text:  # true also for any byte that `write` would put differently
        raise InstallationError(f"{path} is damaged: it does not have the CRC-32 that its last line says; {MEND}")
    return digests


def write(folder: Path, names: Iterable[str]) -> None:
    """Put files of the folder on its list, or on a fresh one where there is none. Files that are gone leave the list.

    Raises InstallationError where the list is damaged, OSError where a file cannot be read or the list written.
    """
    kept = {name: digest for name, digest in (read(folder) or {}).items() if (folder / name).is_file()}
    made = folder / f".{LIST}.tmp"
    made.write_bytes(_text(kept | {name: _digest(folder / name) for name in names}))
    made.replace(folder / LIST)


def verify(path: Path, digest: str) -> None:
    """Raises InstallationError unless the file has this SHA-256 (hexadecimal).

    A file is hashed once per process, and again where its size, time or inode says that it was replaced.
    """
    try:
        facts = path.stat()
        found = _digest_of(path, facts.st_ino, facts.st_size, facts.st_mtime_ns)
    except OSError as error:
        raise InstallationError(f"{path} cannot be read: {error.strerror or error}; {MEND}") from error
    if found != digest:
        raise InstallationError(
            f"{path} is damaged: its SHA-256 begins with {found[:16]}, {LIST} says {digest[:16]}; {MEND}"
        )


def _text(digests: Mapping[str, str]) -> bytes:
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode("ascii", "replace")
    return lines + f"# CRC-32 {zlib.crc32(lines):08x}\n".encode()


@lru_cache(maxsize=64)
def _digest_of(path: Path, *facts: int) -> str:
    """`_digest`, remembered as long as `facts` (inode, size in bytes, time in ns) stay the same."""
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return sha256(file)


def sha256(file: io.RawIOBase | BinaryIO) -> str:
    """SHA-256 of what is left of a file, in hexadecimal."""
    import hashlib  # takes 4 ms

    digest, piece = hashlib.sha256(), bytearray(_PIECE)
    while n := file.readinto(piece):  # type: ignore[union-attr]  # every binary file has it; BinaryIO does not say so
        digest.update(memoryview(piece)[:n])
    return digest.hexdigest()
