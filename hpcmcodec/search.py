"""Where models outside of the package are looked for: one file NAME.safetensors for each, in these folders, in order.

    $HPCM_MODELS          folders, separated as those of $PATH
    the user's data       $XDG_DATA_HOME/hpcmcodec/models, or ~/.local/share/hpcmcodec/models

Packaged models come before all of them, so that no file takes the place of one by its name; a path names any file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".safetensors"
VARIABLE = "HPCM_MODELS"


def folders() -> list[Path]:
    """The folders in the order in which they are searched. They need not exist."""
    found = [Path(text) for text in os.environ.get(VARIABLE, "").split(os.pathsep) if text]
    named = os.environ.get("XDG_DATA_HOME")
    if named and Path(named).is_absolute():
        found.append(Path(named, "hpcmcodec", "models"))
    else:
        with contextlib.suppress(RuntimeError):  # no home is known
            found.append(Path.home() / ".local" / "share" / "hpcmcodec" / "models")
    return list(dict.fromkeys(found))


def files() -> Iterator[Path]:
    """The files of all models, folder by folder, in the order of names. Devices and pipes are none."""
    for folder in folders():
        try:
            found = sorted(folder.iterdir())
        except OSError:
            continue
        yield from (p for p in found if p.suffix == SUFFIX and not p.name.startswith(".") and is_file(p))


def named(name: str) -> Path | None:
    """The first file of a model of this name."""
    return next((path for folder in folders() if is_file(path := folder / f"{name}{SUFFIX}")), None)


def is_file(path: Path) -> bool:
    """Whether there is a regular file; False where the system does not let us know."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_path(model: str) -> bool:
    """Whether what names a model is the path of a file rather than a name."""
    return model.endswith(SUFFIX) or os.sep in model or bool(os.altsep and os.altsep in model)


def looked() -> str:
    """Where models were looked for, in words."""
    return ", ".join(["the package", *(f"{f}{_lack(f)}" for f in folders())])


def _lack(folder: Path) -> str:
    """Why a folder has no models for us."""
    try:
        list(folder.iterdir())
    except FileNotFoundError:
        return " (not there)"
    except OSError as error:
        return f" ({error.strerror or error})"
    return ""
