"""The family of errors that hpcmcodec raises.

Each class answers one question of the caller and carries the exit code of the command line for it:

    =================== ========= ===================================================================
    class               exit code meaning
    =================== ========= ===================================================================
    `HpcmError`         1         base of the family
    `InputError`        3         the input is not a readable image, or not a valid ``.hpcm`` file
    `UnsupportedError`  4         the input is valid, but this version or installation cannot treat it
    `IntegrityError`    5         a checksum does not hold: the data were damaged
    `InstallationError` 5         a file of this installation is damaged or missing
    `OutputError`       6         the output exists already or cannot be written
    `CancelledError`    130       the callback `progress` has ended the work
    =================== ========= ===================================================================

A mistake in a call (a quality of 200, an array of the wrong shape) is a plain `ValueError` or `TypeError`.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "CancelledError",
    "HpcmError",
    "InputError",
    "InstallationError",
    "IntegrityError",
    "OutputError",
    "UnsupportedError",
]


class HpcmError(Exception):
    """Base of all errors that hpcmcodec raises on purpose."""

    exit_code: ClassVar[int] = 1


class InputError(HpcmError, ValueError):
    """The input is not a readable image, or not a valid ``.hpcm`` file."""

    exit_code: ClassVar[int] = 3


class UnsupportedError(HpcmError):
    """The input is valid, but this version or installation cannot treat it.

    The reason may be the format version, the model, alpha, an animation, the size, or a package that is not installed.
    """

    exit_code: ClassVar[int] = 4


class IntegrityError(HpcmError):
    """A checksum or an invariant of the entropy coder does not hold: the data are damaged, or the latents differ."""

    exit_code: ClassVar[int] = 5


class InstallationError(IntegrityError):
    """A file of this installation is damaged or missing; the message says which, and how to mend it."""


class OutputError(HpcmError):
    """The output exists already or cannot be written."""

    exit_code: ClassVar[int] = 6


class CancelledError(HpcmError):
    """The callback `progress` has returned False, which ends the work."""

    exit_code: ClassVar[int] = 130
