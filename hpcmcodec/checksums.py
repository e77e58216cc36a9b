"""SHA-256 of the files of a folder, in a list beside them: damage is found before a file is used.

    <64 hexadecimal digits>  <file name>     one line a file, in order of names; `sha256sum -c SHA256SUMS` checks them
    # CRC-32 <8 hexadecimal digits>          of the lines above, since the list may be what is damaged

`weights/SHA256SUMS` comes with the weights and is written by their export. Digests guard against disks, transfers and
installations cut short, not against somebody who can write to the folder.

Importing this module takes no time: `hpcm info` reads lists, but hashes no files.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from hpcmcodec.errors import InstallationError

__all__ = ["LIST", "read", "verify", "write"]

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
    if _text(digests) != text:  # also where a byte is not as `write` puts it
        raise InstallationError(f"{path} is damaged: it does not have the CRC-32 that its last line says; {MEND}")
    return digests


def write(folder: Path, names: Iterable[str]) -> None:
    """Put files of the folder on its list, which is made where there is none; files that are gone leave it.

    Raises InstallationError where the list is damaged, OSError where a file cannot be read or the list written.
    """
    kept = {name: digest for name, digest in (read(folder) or {}).items() if (folder / name).is_file()}
    made = folder / f".{LIST}.tmp"
    made.write_bytes(_text(kept | {name: _digest(folder / name) for name in names}))
    made.replace(folder / LIST)


def verify(path: Path, digest: str) -> None:
    """Raises InstallationError unless the file has this SHA-256 (hexadecimal).

    A file is hashed once a process, and again where its size, time or place on the disk say that it was replaced.
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
    """`_digest`, kept as long as the facts of the file are these."""
    return _digest(path)


def _digest(path: Path) -> str:
    import hashlib  # 4 ms

    digest, piece = hashlib.sha256(), bytearray(_PIECE)
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(piece):
            digest.update(memoryview(piece)[:n])
    return digest.hexdigest()
