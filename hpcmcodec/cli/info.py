"""``hpcm info``: prints what the header of a .hpcm file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from hpcmcodec import container
from hpcmcodec.cli.batch import each
from hpcmcodec.cli.files import Output, about, check_input, opened, size_of, write_stdout
from hpcmcodec.cli.messages import label, printable
from hpcmcodec.cli.needs import require_memory
from hpcmcodec.cli.options import Settings, force_option, inputs_argument, shared_options
from hpcmcodec.errors import InputError


@click.command("info")
@inputs_argument
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.option(
    "--bits-map",
    "map_target",
    metavar="OUT.png",
    type=click.Path(readable=False),
    help="Also decode INPUT and draw where its bits went.",
)
@click.option("--exif", "with_exif", is_flag=True, help="Also print what EXIF and texts say; read from the whole file.")
@click.option("--coder", "with_coder", is_flag=True, help="Also say which entropy coder reads INPUT here.")
@force_option
@shared_options
@click.pass_obj
def command(
    settings: Settings,
    sources: tuple[str, ...],
    as_json: bool,
    map_target: str | None,
    with_exif: bool,
    with_coder: bool,
    force: bool,
) -> None:
    """Print what the header of each .hpcm file INPUT says.

    With --json several inputs give one object each, on a line of its own.

    \b
    The JSON object has these keys:
      format_version  of the container
      model           name of the weights, null where they are not here
      model_id        of the weights, in hexadecimal
      width, height   in pixels
      quality         0 to 100
      bytes, bpp      size of the file, and in bits per pixel
      color           "sRGB", "ICC (n bytes)" with a profile of its own, or
                      "CICP p/t": primaries and transfer function by H.273
      depth           bits of each sample of the picture that was coded
      grey            whether that picture was grey
      tiles           number of separately coded tiles
      tile_side       of a whole tile, in units of 16 pixels
      streams         bytes of each scale: z, s1, s2, s3
      metadata        bytes of each chunk as stored: ICC, ALPH (the alpha
                      channel), EXIF, TEXT, XMP
      picture_crc     CRC-32 of the decoded 8-bit pixels in hexadecimal, null
                      where the file has none
      complete        false where the file has been cut
      exif            with --exif: names and values of EXIF's tags, and
                      the texts
      coder           with --coder: "compressai", "native C++" or
                      "native Python", which read and write the same
    """
    if map_target and Path(map_target).suffix.lower() != ".png":
        raise click.UsageError(f"the map is a PNG, so OUT must end in .png, not {map_target}")
    if map_target and len(sources) > 1:
        raise click.UsageError("--bits-map draws the map of one input")

    def show(source: str) -> None:
        check_input(source)
        map_output = Output(source, map_target, ".png", force) if map_target else None
        header, facts = _read(source, settings, map_output, with_exif)
        if with_coder:
            require_memory()
            from hpcmcodec import rans_coders

            facts["coder"] = rans_coders.choose().coder.name
        indent = 2 if len(sources) == 1 else None
        text = json.dumps(facts, indent=indent) if as_json else _describe(label(source), facts, header.file_bytes)
        write_stdout(text.encode() + b"\n")

    each(settings, sources, show)


def _read(
    source: str, settings: Settings, map_output: Output | None, with_exif: bool
) -> tuple[container.Header, dict[str, Any]]:
    """The header of an input and the JSON object; writes the map of bits where there is to be one."""
    from hpcmcodec import weights

    data = b""
    with about(source), opened(source) as stream:
        if map_output or with_exif:
            data = container.read(stream, **settings.limits)
            header, n_bytes = container.parse_header(data, **settings.limits), len(data)
        else:
            header, start = container.read_header(stream, max_pixels=settings.max_pixels, max_side=settings.max_side)
            n_bytes = size_of(stream, len(start), header.file_bytes)
        model = weights.model_name(header.model_id)
    facts = _facts(header, n_bytes, model)
    if with_exif:
        require_memory()
        with about(source):
            facts["exif"] = _exif(container.Reader(data, **settings.limits))
    if map_output:
        require_memory()
        _write_map(map_output, data, source, header, facts["bpp"], settings)
    return header, facts


def _write_map(
    output: Output, data: bytes, source: str, header: container.Header, bpp: float, settings: Settings
) -> None:
    from hpcmcodec import codec
    from hpcmcodec.evaluation import heat

    with about(source):
        spent = codec.bits_map(data, **settings.limits)
    title = f"{Path(label(source)).name}: {bpp:.3f} bits per pixel"
    output.write(heat.bits_png(spent, header.width, header.height, printable(title)))


def _facts(header: container.Header, n_bytes: int, model: str | None) -> dict[str, Any]:
    """The JSON object without what options add, of a file of `n_bytes` bytes."""
    metadata = {chunk.name: chunk.length for chunk in header.chunks if chunk.known}
    return {
        "format_version": header.version,
        "model": model,
        "model_id": header.model_id.hex(),
        "width": header.width,
        "height": header.height,
        "quality": header.quality.percent,
        "bytes": n_bytes,
        "bpp": round(8 * n_bytes / (header.width * header.height), 6),
        "color": _color(header, metadata),
        "depth": header.depth,
        "grey": header.grey,
        "tiles": header.n_tiles,
        "tile_side": header.tile_side,
        "streams": {scale: header.bytes_of(scale) for scale in container.STREAM_ORDER},
        "metadata": metadata,
        "picture_crc": None if header.picture_crc is None else f"{header.picture_crc:08x}",
        "complete": n_bytes == header.file_bytes,
    }


def _where() -> str:
    """Where a model that was not found was looked for."""
    from hpcmcodec import search

    return f"; looked in {search.looked()}"


def _color(header: container.Header, metadata: dict[str, int]) -> str:
    """What the decoded pixels mean."""
    if header.cicp is not None:
        return "CICP {}/{}".format(*header.cicp)
    return f"ICC ({metadata['ICC']} bytes)" if "ICC" in metadata else "sRGB"


def _exif(reader: container.Reader) -> dict[str, str]:
    """What EXIF and the texts of a file say."""
    from hpcmcodec.image.exif import described

    reader.verify_complete()
    blocks = reader.metadata()
    try:
        texts = container.text_of(blocks.get("TEXT", b""))
    except InputError as error:
        texts = {"Texts": f"cannot be read: {error}"}
    return described(blocks.get("EXIF", b"")) | texts


def _describe(label: str, facts: dict[str, Any], file_bytes: int) -> str:
    """The text that ``info`` prints, one aligned line for each fact."""
    size = f"{facts['bytes']} bytes, {facts['bpp']:.3f} bpp"
    if not facts["complete"]:
        size += f"; {file_bytes} bytes when whole"
    rows = {
        "Format": f"version {facts['format_version']}",
        "Model": f"{facts['model'] or 'not here'} ({facts['model_id']})" + ("" if facts["model"] else _where()),
        "Resolution": f"{facts['width']}x{facts['height']}",
        "Quality": f"{facts['quality']:g}",
        "Size": size,
        "Color": facts["color"],
        "Samples": f"{facts['depth']} bits{', grey' if facts['grey'] else ''}",
        "Tiles": f"{facts['tiles']}, of {facts['tile_side']}x{facts['tile_side']} latents",
        "Streams": ", ".join(f"{scale} {n_bytes}" for scale, n_bytes in facts["streams"].items()) + " bytes",
        "Metadata": ", ".join(f"{name} {n_bytes} bytes" for name, n_bytes in facts["metadata"].items()) or "none",
    }
    if facts["picture_crc"]:
        rows["Picture"] = f"CRC-32 {facts['picture_crc']}"
    if "coder" in facts:
        rows["Coder"] = facts["coder"]
    lines = [printable(label), *(f" * {name:<10} : {value}" for name, value in rows.items())]
    lines += [f"     {printable(name)}: {printable(value)}" for name, value in facts.get("exif", {}).items()]
    return "\n".join(lines)
