"""``hpcm verify``: says whether .hpcm files are whole."""

from __future__ import annotations

import click

from hpcmcodec import container
from hpcmcodec.cli.batch import each
from hpcmcodec.cli.files import about, check_input, opened, write_stdout
from hpcmcodec.cli.many import Many, Work, many_options, run
from hpcmcodec.cli.messages import Progress, label, printable
from hpcmcodec.cli.needs import require_memory
from hpcmcodec.cli.options import Settings, device_option, inputs_or_list_argument, shared_options


@click.command("verify")
@inputs_or_list_argument
@click.option(
    "--decode", "decoding", is_flag=True, help="Decode too, which compares the checksums of latents and pixels."
)
@many_options("if_exists", "preserve_times", "smaller_or_skip")
@device_option
@shared_options
@click.pass_obj
def command(settings: Settings, sources: tuple[str, ...], decoding: bool, device: str, many: Many) -> None:
    """Check that .hpcm files are whole: the checksum over all bytes, and with --decode those of what they decode to."""

    if many.wanted:
        options = {"decode": True, "device": device} if decoding else {}
        run(settings, many, Work("verify", options, (".hpcm",), None, "verify" if decoding else "read"), sources)
        return

    def check(source: str) -> None:
        check_input(source)
        with about(source), opened(source) as stream:
            data = container.read(stream, **settings.limits)
            reader = container.Reader(data, **settings.limits)
            reader.verify_complete()
            reader.metadata()
        said = "its checksum agrees"
        if decoding:
            require_memory()
            from hpcmcodec import codec

            with about(source), Progress("decoding", settings) as progress:
                codec.decode_picture(data, device=device, depth=8, progress=progress, **settings.limits)
            pixels = "" if reader.header.picture_crc is None else " and pixels"
            said = f"the checksums of file, latents{pixels} agree"
        if not settings.quiet:
            write_stdout(f"{printable(label(source))}: {said}\n".encode())

    each(settings, sources, check)
