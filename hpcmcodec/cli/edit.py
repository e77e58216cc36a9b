"""``hpcm edit``: changes the metadata of a .hpcm file without coding the picture again."""

from __future__ import annotations

import click

from hpcmcodec import container
from hpcmcodec.cli.files import Output, about, check_input, opened
from hpcmcodec.cli.messages import label, say
from hpcmcodec.cli.metadata import changes, metadata_options
from hpcmcodec.cli.needs import require_memory
from hpcmcodec.cli.options import Settings, force_option, input_argument, output_option, shared_options


@click.command("edit")
@input_argument
@output_option("The file to write.  [default: INPUT itself, with --force]")
@metadata_options
@force_option
@shared_options
@click.pass_obj
def command(
    settings: Settings,
    source: str,
    target: str | None,
    strip: str,
    keep: str | None,
    exif: str | None,
    xmp: str | None,
    icc: str | None,
    force: bool,
) -> None:
    """Change the metadata of the .hpcm file INPUT. The picture is not coded again, and stays the same.

    \b
      hpcm edit photo.hpcm --strip gps -f
      hpcm edit photo.hpcm -o public.hpcm --keep icc
      hpcm edit photo.hpcm -o titled.hpcm --xmp title.xmp
    """
    wanted = changes(strip, keep, exif, xmp, icc)
    if not wanted:
        raise click.UsageError("nothing to change: --strip, --keep, --exif, --xmp or --icc says what")
    check_input(source)
    output = Output(source, target or source, ".hpcm", force, in_place=True)
    require_memory()
    import numpy as np

    from hpcmcodec.image import Picture, colour

    with about(source):
        with opened(source) as stream:
            data = container.read(stream, **settings.limits)
        reader = container.Reader(data, **settings.limits)
        reader.verify_complete()
        metadata = reader.metadata()
    opacity = metadata.pop("ALPH", b"")
    cicp = None if reader.header.cicp is None else colour.of_header(*reader.header.cicp)
    nothing = np.empty((0, 0, 3), np.uint8)  # the pixels stay coded
    picture = wanted.applied(Picture(nothing, metadata, grey=reader.header.grey, cicp=cicp))
    with about(source):
        edited = container.edited(data, {**picture.metadata, "ALPH": opacity}, picture.cicp)
    output.write(edited)
    if not settings.quiet:
        written = "standard output" if output.name == "-" else output.name
        say(f"{label(source)} -> {written}: {len(data)} -> {len(edited)} bytes")
