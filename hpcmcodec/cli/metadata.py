"""The options that take metadata away or replace it, shared by ``encode`` and ``edit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from hpcmcodec.cli.files import about, check_input
from hpcmcodec.cli.options import names
from hpcmcodec.errors import InputError
from hpcmcodec.formats import METADATA_KINDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from hpcmcodec.image import Picture

    Function = TypeVar("Function", bound=Callable[..., object])

_LISTED = ",".join(METADATA_KINDS)
_MAX_BYTES = 1 << 25


class Changes(NamedTuple):
    """What the options ask for: kinds of metadata to drop, the only ones to keep, files of others."""

    strip: list[str]
    keep: list[str] | None
    exif: str | None
    xmp: str | None
    icc: str | None

    def __bool__(self) -> bool:
        return bool(self.strip or self.keep is not None or self.exif or self.xmp or self.icc)

    def applied(self, picture: Picture) -> Picture:
        """The picture with these changes. Raises `InputError` for a file that does not hold what its option says."""
        from hpcmcodec.image import editing

        picture = editing.stripped(picture, self.strip)
        if self.keep is not None:
            picture = editing.kept(picture, self.keep)
        for path, change in (
            (self.exif, editing.with_exif),
            (self.xmp, editing.with_xmp),
            (self.icc, editing.with_icc),
        ):
            if path:
                with about(path):
                    picture = change(picture, _read(path))
        return picture


def changes(strip: str, keep: str | None, exif: str | None, xmp: str | None, icc: str | None) -> Changes:
    """The options as they were given. Raises click.UsageError where they contradict each other."""
    if strip and keep is not None:
        raise click.UsageError("--strip and --keep exclude each other")
    for path in filter(None, (exif, xmp, icc)):
        check_input(path)
    kept = None if keep is None else names(keep, METADATA_KINDS, "--keep")
    return Changes(names(strip, METADATA_KINDS, "--strip"), kept, exif, xmp, icc)


def metadata_options(function: Function) -> Function:
    """The options whose values `changes` takes."""
    path = click.Path(readable=False)
    for decorate in (
        click.option("--icc", metavar="FILE", type=path, help="Take the ICC profile of RGB in FILE."),
        click.option("--xmp", metavar="FILE", type=path, help="Take the XMP packet in FILE."),
        click.option("--exif", metavar="FILE", type=path, help="Take the EXIF block in FILE."),
        click.option("--keep", metavar="KIND,...", help=f"Keep these kinds of metadata alone: {_LISTED}."),
        click.option(
            "--strip",
            default="",
            metavar="KIND,...",
            help=f"Drop these kinds of metadata: {_LISTED}. 'text' has IPTC too; 'all' leaves the colour space, which "
            "'icc' drops.",
        ),
    ):
        function = decorate(function)
    return function


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    if not 0 < len(data) <= _MAX_BYTES:
        raise InputError(f"it has {len(data) or 'no'} bytes; 1 to {_MAX_BYTES} are read")
    return data
