"""Result files and their heads, which say where the figures come from: machine, versions, commit, model."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from hpcmcodec import __version__, weights
from hpcmcodec.errors import InputError
from hpcmcodec.evaluation.store import write_whole

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"

_PACKAGES = ("numpy", "onnxruntime", "pillow", "compressai", "torch", "pytorch-msssim")


def cpu_name() -> str:
    """The processor's model name, or its architecture where the system does not tell the name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def about(command: str, commit: str | None = None, model: str = weights.DEFAULT_MODEL) -> dict[str, Any]:
    """The head of a result file.

    Args:
        command: the command that measured, in a form that a reader can repeat.
        commit: the commit of the code that measured; None: the checkout's, as `head` gives it.
        model: the name of the model that was used.
    """
    return {
        "command": command,
        "machine": f"{cpu_name()}, {os.cpu_count()} cores",
        "versions": {"hpcmcodec": __version__, "python": platform.python_version(), **_versions()},
        "commit": commit or head(),
        "model": f"{model} {weights.load(model, transforms=False).model_id.hex()}",
    }


def head() -> str:
    """The checkout's commit, with "-dirty" behind it where tracked files differ; "unknown" outside a repository."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result file: JSON in which each innermost list is one line, so that a diff shows where a figure changed.

    Raises:
        OutputError: the file cannot be written.
    """
    write_whole(path, pretty(content))


def pretty(content: Mapping[str, Any]) -> str:
    """The text of a result file."""
    return _pretty(content, 0) + "\n"


def read(path: Path) -> dict[str, Any]:
    """The content of a result file. Raises InputError where there is none, or it is no JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: not a result file ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a result file (a JSON object is expected, found {type(content).__name__})")
    return content


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"numpy": np.__version__}


def _pretty(value: Any, depth: int) -> str:
    items: list[str]
    if isinstance(value, Mapping) and value:
        items, ends = [f"{json.dumps(str(k))}: {_pretty(v, depth + 1)}" for k, v in value.items()], "{}"
    elif isinstance(value, list) and any(isinstance(each, (Mapping, list)) for each in value):
        items, ends = [_pretty(each, depth + 1) for each in value], "[]"
    else:
        return json.dumps(value, allow_nan=False)
    inner, outer = "\n" + " " * (depth + 1), "\n" + " " * depth
    return ends[0] + inner + f",{inner}".join(items) + outer + ends[1]
