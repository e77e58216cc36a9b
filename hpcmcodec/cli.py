"""The command line: ``hpcm encode``, ``hpcm decode``, ``hpcm info``, a thin layer over the library.

What a script can rely on:

- Results go to the file named (or standard output for ``-``), everything said to people goes to standard error:
  errors and usage mistakes one line each, then notes about conversions and one line of bytes, bits per pixel and
  seconds, both silenced by ``--quiet``.
- A file appears whole or not at all: it is written beside its place under a hidden name and renamed. Whether it may be
  written is checked before the work. Pipes, devices and open descriptors (/dev/stdout, /dev/fd/3) are written to as
  they are; a folder is no output, whether it exists or only ends in a separator.
- An input is read as far as its header or its format makes sense, so that a device without end is refused.
- The exit codes of `EXIT_CODES`.

Starting up counts: ``hpcm info`` takes about as long as Python and click need to load. So this module imports click and
the standard library only; a command imports what it needs, numpy and onnxruntime for coding alone, rich (0.12 s) when
there is a bar to show.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import stat
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from hpcmcodec import __version__, container, interrupts, threads
from hpcmcodec.container import DEFAULT_MAX_PIXELS
from hpcmcodec.errors import HpcmError, InputError, InstallationError, OutputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import BinaryIO

    from rich.progress import Progress

    Function = TypeVar("Function", bound=Callable[..., object])

__all__ = ["EXIT_CODES", "cli", "main"]

# Each line of the help stays within 80 columns.
EXIT_CODES = {
    0: "done",
    1: "an error of the program itself: please report it",
    2: "wrong usage: unknown option, missing argument, value out of range",
    3: "the input is not a readable image, or not a valid .hpcm file",
    4: "not supported here: version, model, device, alpha, animation, size",
    5: "integrity failure: a checksum or the decoded latents do not agree",
    6: "the output exists or cannot be written",
    130: "interrupted",
}

# Seconds of work after which a bar appears: shorter work is over before a bar is read.
_PROGRESS_AFTER_SECONDS = 1.0

# Bytes of addresses that numpy, onnxruntime and the weights take, measured where limits begin to let them load.
_ADDRESSES = 256 << 20
# Bytes behind the end of a file after which a pipe is taken to have no end.
_MAX_TRAILING = 1 << 26
# What a shell and its scripts call the descriptors that they hand over.
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,9})")
_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


class _Settings:
    """The options that every command shares, wherever on the line they stand."""

    def __init__(self) -> None:
        self.debug = False
        self.quiet = False
        self.max_pixels: int | None = None


class _Cli(click.Group):
    """A click group that reports each failure as one line with the exit code of `EXIT_CODES`."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        settings = _Settings()
        kwargs.update(prog_name="hpcm", standalone_mode=False, obj=settings)
        try:
            code = super().main(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  reported, with an exit code
            code = _report(error, settings)
        sys.exit(code or 0)

    def invoke(self, ctx: click.Context) -> Any:
        # Caught here, before click's own handlers: they would turn a closed pipe into exit code 1 and print an empty
        # line for an interruption.
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException):
            raise
        except (Exception, KeyboardInterrupt) as error:
            raise click.exceptions.Exit(_report(error, ctx.ensure_object(_Settings))) from error


def _report(error: BaseException, settings: _Settings) -> int:
    """Says in one line what went wrong; returns the exit code."""
    if settings.debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        _say("error: interrupted")
        return interrupts.EXIT_CODE
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "hpcm"
        _say(f"error: {error.format_message().rstrip('.')}; see '{command} --help'")
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return OutputError.exit_code  # quiet: whoever reads us has seen enough
    if isinstance(error, HpcmError) and error.exit_code != HpcmError.exit_code:
        _say(f"error: {error}")
        return error.exit_code
    if isinstance(error, MemoryError):
        _say("error: not enough memory for an image of this size")
        return UnsupportedError.exit_code
    _say(f"error: {type(error).__name__}: {error} (an error of the program; --debug shows where)")
    return HpcmError.exit_code


def _say(text: str) -> None:
    """Writes one line to standard error; that nobody can read it does not fail the work."""
    with contextlib.suppress(OSError):
        click.echo(f"hpcm: {_printable(text)}", err=True)


def _printable(text: str) -> str:
    """`text` on one line, with what could steer a terminal escaped: file names may hold anything."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


# --------------------------------------------------------------------------------------------------------- options


def _store(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value and parameter.name:
        setattr(ctx.ensure_object(_Settings), parameter.name, value)


def _shared_options(function: Function) -> Function:
    """The options that work before and after the name of a command."""
    for decorate in (
        click.version_option(__version__, prog_name="hpcm", message="%(prog)s %(version)s"),
        click.option("--debug", is_flag=True, expose_value=False, callback=_store, help="Show tracebacks."),
        click.option("--quiet", is_flag=True, expose_value=False, callback=_store, help="Say nothing but errors."),
        click.option(
            "--max-pixels",
            type=click.IntRange(min=1),
            metavar="N",
            expose_value=False,
            callback=_store,
            help=f"Refuse images of more pixels.  [default: {DEFAULT_MAX_PIXELS}; for info: no limit]",
        ),
    ):
        function = decorate(function)
    return function


def _finite(ctx: click.Context, parameter: click.Parameter, value: float) -> float:
    if math.isnan(value):  # passes click's range, whose comparisons are all false
        raise click.BadParameter("not a number", ctx, parameter)
    return value


_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
# Whether files can be read is found where they are opened: click would call it wrong usage, exit code 2.
_input = click.argument("source", metavar="INPUT", type=click.Path(allow_dash=True, readable=False))
_output_path = click.Path(allow_dash=True, readable=False)
_force = click.option("-f", "--force", is_flag=True, help="Overwrite the output if it exists.")
_device = click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to compute."
)


def _output(suffix: str) -> Callable[[Function], Function]:
    text = f"The file to write.  [default: INPUT with {suffix} as its suffix; '-' where INPUT is '-']"
    return click.option("-o", "--output", "target", metavar="OUTPUT", type=_output_path, help=text)


# -------------------------------------------------------------------------------------------------------- commands


@click.group(
    cls=_Cli,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
    epilog=_EPILOG,
)
@_shared_options
def cli() -> None:
    """A learned codec for photographs.

    \b
      hpcm encode photo.jpg -o photo.hpcm
      hpcm decode photo.hpcm -o photo.png
      hpcm info photo.hpcm
      hpcm compare photo.jpg photo.hpcm -o report.html
      hpcm eval photographs/

    '-' as INPUT or OUTPUT is standard input or output. An ICC profile, EXIF and XMP are kept.
    """


@cli.command(epilog=_EPILOG)
@_input
@_output(".hpcm")
@click.option(
    "-q",
    "--quality",
    type=click.FloatRange(0, 100),
    callback=_finite,
    default=50,
    show_default=True,
    help="From 0 (smallest file) to 100 (best picture); decimals are allowed.",
)
@click.option(
    "-e",
    "--effort",
    type=click.IntRange(0, 9),
    default=0,
    show_default=True,
    help="Refine what is coded: a better picture in a file of about the same size. 1 to 4 take that many rounds, each "
    "about as long as encoding and decoding; 9 takes 16.",
)
@_force
@_device
@_shared_options
@click.pass_obj
def encode(
    settings: _Settings, source: str, target: str | None, quality: float, effort: int, force: bool, device: str
) -> None:
    """Code the image INPUT as a .hpcm file.

    JPEG, PNG, WebP, AVIF, TIFF, GIF, PPM, BMP and JPEG 2000 are read. EXIF's orientation is applied. Greyscale,
    palette, CMYK and more than 8 bits are converted, an opaque alpha channel is dropped, each with a note; other alpha
    and animations are refused.
    """
    started = time.perf_counter()
    _check_input(source)
    output = _Output(source, target, ".hpcm", force)
    _require_memory()
    from hpcmcodec import codec, image

    max_pixels = settings.max_pixels or DEFAULT_MAX_PIXELS
    with _about(source):
        with _mute_libraries(settings):
            if source == "-":
                with _opened(source) as stream:
                    picture = image.load(stream, max_pixels=max_pixels)
            else:
                picture = image.load(source, max_pixels=max_pixels)
        if not settings.quiet:
            for note in picture.notes:
                _say(f"note: {_label(source)}: {note}")
        with _Progress("encoding", settings) as progress:
            data = codec.encode(
                picture, quality, effort=effort, device=device, max_pixels=max_pixels, progress=progress
            )
    output.write(data)
    height, width, _ = picture.pixels.shape
    _summarise(settings, source, output.name, len(data), width * height, started)
    _mention_kernels(settings, device)


@cli.command(epilog=_EPILOG)
@_input
@_output(".png")
@click.option(
    "--scale",
    type=click.Choice(["s1", "s2", "s3"]),
    help="Decode a preview from this scale and the coarser ones; INPUT may have been cut after them.",
)
@_force
@_device
@_shared_options
@click.pass_obj
def decode(settings: _Settings, source: str, target: str | None, scale: str | None, force: bool, device: str) -> None:
    """Decode the .hpcm file INPUT to a PNG."""
    started = time.perf_counter()
    if target not in (None, "-") and Path(target).suffix.lower() not in ("", ".png"):
        raise click.UsageError(f"decode writes PNG, so OUTPUT must end in .png, not {Path(target).suffix}")
    _check_input(source)
    output = _Output(source, target, ".png", force)
    _require_memory()
    from hpcmcodec import codec, image

    max_pixels = settings.max_pixels or DEFAULT_MAX_PIXELS
    with _about(source), _Progress("decoding", settings) as progress:
        with _opened(source) as stream:
            data = container.read(stream, max_pixels=max_pixels)
        picture = codec.decode(data, device=device, scale=scale, max_pixels=max_pixels, progress=progress)
    png = io.BytesIO()
    image.write_png(picture, png)
    output.write(png.getbuffer())
    _summarise(settings, source, output.name, len(data), picture.width * picture.height, started)
    _mention_kernels(settings, device)


@cli.command(epilog=_EPILOG)
@_input
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.option(
    "--bits-map",
    "map_target",
    metavar="OUT.png",
    type=click.Path(readable=False),
    help="Also decode INPUT and draw where its bits went.",
)
@click.option("--coder", "with_coder", is_flag=True, help="Also say which entropy coder reads INPUT here.")
@_force
@_shared_options
@click.pass_obj
def info(
    settings: _Settings, source: str, as_json: bool, map_target: str | None, with_coder: bool, force: bool
) -> None:
    """Print what the header of the .hpcm file INPUT says.

    \b
    The JSON object has these keys:
      format_version  of the container
      model           name of the weights, null where this installation lacks them
      model_id        of the weights, in hexadecimal
      width, height   in pixels
      quality         0 to 100
      bytes, bpp      size of the file, and in bits per pixel
      color           "sRGB", or "ICC (n bytes)" with a profile of its own
      tiles           number of separately coded tiles
      streams         bytes of each scale: z, s1, s2, s3
      metadata        bytes of each chunk: ICC, EXIF, XMP
      complete        false where the file has been cut
      coder           with --coder: "compressai", "native C++" or
                      "native Python", which read and write the same
    """
    _check_input(source)
    if map_target and Path(map_target).suffix.lower() != ".png":
        raise click.UsageError(f"the map is a PNG, so OUT must end in .png, not {map_target}")
    map_output = _Output(source, map_target, ".png", force) if map_target else None
    from hpcmcodec import weights

    max_pixels = settings.max_pixels or DEFAULT_MAX_PIXELS
    data = b""
    with _about(source), _opened(source) as stream:
        if map_output:
            data = container.read(stream, max_pixels=max_pixels)
            header, n_bytes = container.parse_header(data, max_pixels=max_pixels), len(data)
        else:
            header, start = container.read_header(stream, max_pixels=settings.max_pixels)
            n_bytes = _size(stream, len(start), header.file_bytes)
        model = weights.model_name(header.model_id)
    metadata = {chunk.name: chunk.length for chunk in header.chunks}
    facts: dict[str, Any] = {
        "format_version": header.version,
        "model": model,
        "model_id": header.model_id.hex(),
        "width": header.width,
        "height": header.height,
        "quality": header.quality.percent,
        "bytes": n_bytes,
        "bpp": round(8 * n_bytes / (header.width * header.height), 6),
        "color": f"ICC ({metadata['ICC']} bytes)" if "ICC" in metadata else "sRGB",
        "tiles": header.tile_rows * header.tile_cols,
        "streams": {scale: header.bytes_of(scale) for scale in container.STREAM_ORDER},
        "metadata": metadata,
        "complete": n_bytes == header.file_bytes,
    }
    if with_coder:
        _require_memory()
        from hpcmcodec import rans_coders

        facts["coder"] = rans_coders.choose().coder.name
    if map_output:
        _require_memory()
        from hpcmcodec import codec
        from hpcmcodec.evaluation import heat

        with _about(source):
            spent = codec.bits_map(data, max_pixels=max_pixels)
        title = f"{Path(_label(source)).name}: {facts['bpp']:.3f} bits per pixel"
        map_output.write(heat.bits_png(spent, header.width, header.height, _printable(title)))
    text = json.dumps(facts, indent=2) if as_json else _describe(_label(source), facts, header.file_bytes)
    _write_stdout(text.encode() + b"\n")


@cli.command(epilog=_EPILOG)
@click.option("--build", is_flag=True, help="First compile the kernels, if that has not been done; needs g++.")
@_shared_options
def doctor(build: bool) -> None:
    """Say what coding computes with, and why: compiled kernels or plain numpy, which entropy coder.

    Files and pictures are the same with all. HPCM_OPS chooses: auto, reference, cpp, cuda; and HPCM_CODER: auto,
    compressai, native.
    """
    _require_memory()
    from itertools import chain

    from hpcmcodec import rans_check
    from hpcmcodec.native import doctor as examination

    if build:
        examination.build_now()
    for name, fact in chain(examination.report(), rans_check.report()):
        _write_stdout(f" * {name:<10} : {_printable(fact)}\n".encode())


def _describe(label: str, facts: dict[str, Any], file_bytes: int) -> str:
    """The text form of ``info``, one aligned line a fact."""
    size = f"{facts['bytes']} bytes, {facts['bpp']:.3f} bpp"
    if not facts["complete"]:
        size += f"; {file_bytes} bytes when whole"
    rows = {
        "Format": f"version {facts['format_version']}",
        "Model": f"{facts['model'] or 'not in this installation'} ({facts['model_id']})",
        "Resolution": f"{facts['width']}x{facts['height']}",
        "Quality": f"{facts['quality']:g}",
        "Size": size,
        "Color": facts["color"],
        "Tiles": str(facts["tiles"]),
        "Streams": ", ".join(f"{scale} {n_bytes}" for scale, n_bytes in facts["streams"].items()) + " bytes",
        "Metadata": ", ".join(f"{name} {n_bytes} bytes" for name, n_bytes in facts["metadata"].items()) or "none",
    }
    if "coder" in facts:
        rows["Coder"] = facts["coder"]
    return "\n".join([_printable(label), *(f" * {name:<10} : {value}" for name, value in rows.items())])


def _summarise(settings: _Settings, source: str, target: str, n_bytes: int, n_pixels: int, started: float) -> None:
    if not settings.quiet:
        seconds = time.perf_counter() - started
        written = "standard output" if target == "-" else target
        _say(f"{_label(source)} -> {written}: {n_bytes} bytes, {8 * n_bytes / n_pixels:.3f} bpp, {seconds:.2f} s")


def _mention_kernels(settings: _Settings, device: str) -> None:
    """Tells a person at a terminal, not a script, that coding could be quicker here."""
    if device == "cpu" and not settings.quiet and sys.stderr is not None and sys.stderr.isatty():
        from hpcmcodec.native import loader

        note = loader.find(background=False).note()
        if note:
            _say(f"note: {note}")


@cli.command("eval", epilog=_EPILOG)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(readable=False, path_type=Path))
@click.option(
    "--codecs",
    default="hpcm,jpeg,webp,avif",
    show_default=True,
    help="More: hpcm-slow (effort 9), avif-slow (speed 4), avif-ssim, jxl, heic, jpeg2000.",
)
@click.option(
    "--qualities",
    multiple=True,
    metavar="[CODEC=]Q,Q,...",
    help="For hpcm, or for the codec named; can be repeated.  [default: the codec's whole range]",
)
@click.option("--metrics", default="psnr", show_default=True, help="Of psnr, ms-ssim, ssimulacra2.")
@click.option(
    "--anchor",
    "anchors",
    multiple=True,
    metavar="CODEC|FILE.json",
    help="For BD-rates: a codec, or a result file of CompressAI's schema; can be repeated.  [default: each codec]",
)
@click.option("--linear", is_flag=True, help="Plot over linear bits per pixel, not logarithmic.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="Processes.  [default: all cores]")
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, readable=False, path_type=Path),
    default="evaluation",
    show_default=True,
    help="Where results go. A later run goes on from what is there.",
)
@_shared_options
@click.pass_obj
def evaluate(
    settings: _Settings,
    paths: tuple[Path, ...],
    codecs: str,
    qualities: tuple[str, ...],
    metrics: str,
    anchors: tuple[str, ...],
    linear: bool,
    jobs: int | None,
    folder: Path,
) -> None:
    """Measure rate and distortion against other codecs.

    Each image (a folder stands for those in it) is coded by each codec to the bytes of a file and decoded. DIR gets
    results.json and results.csv, plots as PNG and SVG, and results.md, the tables that are also printed: settings,
    speed, memory, BD-rates, averages. An evaluation that was interrupted, or is asked for more, measures only what is
    missing.
    """
    _require("evaluation", "eval", "matplotlib")
    _require_memory()
    from hpcmcodec.evaluation import run
    from hpcmcodec.evaluation.codecs import CODECS
    from hpcmcodec.evaluation.metrics import METRICS

    try:
        wanted = run.parse_qualities(qualities)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--qualities'") from error
    chosen = _names(codecs, CODECS, "--codecs")
    for anchor in anchors:
        if anchor in CODECS and anchor not in chosen:
            raise click.BadParameter(f"{anchor!r} is not among --codecs", param_hint="'--anchor'")
    with _Progress("evaluating", settings) as progress:
        tables = run.run(
            paths,
            folder,
            codecs=chosen,
            metrics=_names(metrics, METRICS, "--metrics"),
            qualities=wanted,
            anchors=anchors,
            jobs=jobs or threads.count(),
            log=not linear,
            max_pixels=settings.max_pixels or DEFAULT_MAX_PIXELS,
            say=lambda line: None if settings.quiet else _say(line),
            progress=progress,
        )
    _write_stdout(tables.encode())


@cli.command(epilog=_EPILOG)
@click.argument("image", metavar="IMAGE", type=click.Path(readable=False, path_type=Path))
@click.argument(
    "files", metavar="FILE.hpcm...", nargs=-1, required=True, type=click.Path(readable=False, path_type=Path)
)
@click.option(
    "-o",
    "--output",
    "target",
    metavar="REPORT.html",
    type=_output_path,
    help="The page to write.  [default: IMAGE with .html as its suffix]",
)
@click.option(
    "--against", default="", metavar="CODEC,...", help="Also show these codecs at the same size: webp,avif,jxl,..."
)
@_force
@_shared_options
@click.pass_obj
def compare(
    settings: _Settings, image: Path, files: tuple[Path, ...], target: str | None, against: str, force: bool
) -> None:
    """Show what .hpcm files make of a photograph.

    IMAGE is the photograph, the result one page for a browser that holds all it shows: a slider over the original and
    each decoded file, crops at the places that differ most, maps of the error and of where the bits went, PSNR, and
    MS-SSIM and SSIMULACRA2 where they are installed.
    """
    started = time.perf_counter()
    for source in (image, *files):
        _check_input(str(source))
    output = _Output(str(image), target, ".html", force)
    _require_memory()
    from hpcmcodec.evaluation import report
    from hpcmcodec.evaluation.codecs import CODECS

    codecs = _names(against, CODECS, "--against")
    with _Progress("comparing", settings) as progress:
        page = report.report(
            image,
            files,
            codecs,
            max_pixels=settings.max_pixels or DEFAULT_MAX_PIXELS,
            say=lambda line: None if settings.quiet else _say(line),
            progress=progress,
        ).encode()
    output.write(page)
    if not settings.quiet:
        _say(f"{image} -> {output.name}: {len(page)} bytes, {time.perf_counter() - started:.2f} s")


def _names(text: str, known: Iterable[str], option: str) -> list[str]:
    """Names separated by commas, each of them known."""
    names = list(dict.fromkeys(name for name in text.split(",") if name))
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint=f"'{option}'")
    return names


def _require(purpose: str, extra: str, *modules: str) -> None:
    """Raises `UnsupportedError` that names the extra to install where one of the modules is missing."""
    from importlib.util import find_spec

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise UnsupportedError(
            f'{purpose} needs {" and ".join(missing)}, which is not installed: pip install "hpcmcodec[{extra}]"'
        )


def _require_memory() -> None:
    """Raises `UnsupportedError` where there is no room for numpy and onnxruntime, before they are imported.

    Their libraries write to standard error and end the process by themselves, or raise errors of any kind. Nothing is
    filled: this is about the addresses that a limit (ulimit -v) leaves.
    """
    import mmap

    try:
        mmap.mmap(-1, _ADDRESSES).close()
    except (OSError, ValueError) as error:
        raise UnsupportedError(f"not enough memory: coding takes {_ADDRESSES >> 20} MiB of it at least") from error


# ------------------------------------------------------------------------------------------------- input and output


def _label(source: str) -> str:
    return "standard input" if source == "-" else source


@contextlib.contextmanager
def _about(source: str) -> Iterator[None]:
    """Errors from inside carry the name of the input, unless they are about this installation."""
    try:
        yield
    except InstallationError:
        raise
    except HpcmError as error:
        if str(error).startswith(f"{source}: "):
            raise
        raise type(error)(f"{_label(source)}: {error}") from error


@contextlib.contextmanager
def _mute_libraries(settings: _Settings) -> Iterator[None]:
    """Keeps libtiff from writing about damage, in lines of its own, to the file descriptor of standard error."""
    try:
        kept = -1 if settings.debug else os.dup(2)
    except OSError:  # standard error is closed
        kept = -1
    if kept < 0:
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        with interrupts.undoing(lambda: os.dup2(kept, 2)):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _check_input(source: str) -> None:
    """Raises `InputError` where `source` is no file, before anything is said about the output."""
    if source == "-":
        return
    try:
        mode = Path(source).stat().st_mode
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{source}: is a directory")


@contextlib.contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    """The input as a stream of bytes; failures to open or read it are `InputError`."""
    try:
        if source != "-":
            with Path(source).open("rb") as file:
                yield file
        elif sys.stdin is None:
            raise InputError("standard input is closed")
        else:
            yield sys.stdin.buffer
    except OSError as error:
        raise InputError(f"{_label(source)}: {error.strerror or error}") from error


def _size(stream: BinaryIO, n_read: int, file_bytes: int) -> int:
    """Bytes of an input of which `n_read` have been read: a file's size; others are read to their end and forgotten.

    Raises `InputError` where that is far behind `file_bytes`, which the header announces.
    """
    with contextlib.suppress(OSError, AttributeError, ValueError):  # no file of the system's behind it
        facts = os.fstat(stream.fileno())
        if stat.S_ISREG(facts.st_mode):
            # Standard input may have been read from already by somebody else.
            return facts.st_size - (stream.tell() - n_read)
    while piece := stream.read(1 << 20):
        n_read += len(piece)
        if n_read > file_bytes + _MAX_TRAILING:
            raise InputError(f"the file should have {file_bytes} bytes, but it goes on without end")
    return n_read


def _descriptor(path: str) -> int | None:
    """The number of the open descriptor that a path of this program's own stands for."""
    found = _DESCRIPTOR.fullmatch(path)
    return int(found[1]) if found else _STREAMS.get(path)


def _write_stdout(data: bytes | memoryview) -> None:
    if sys.stdout is None:
        raise OutputError("standard output is closed")
    try:
        rest = memoryview(data)
        while rest:  # with PYTHONUNBUFFERED this is a raw file, which may write less than it is given
            rest = rest[sys.stdout.buffer.write(rest) or 0 :]
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output: {error.strerror or error}") from error


class _Output:
    """Where a result goes: refused at once if it may not be written there, written whole or not at all.

    A link is followed, so that the link stays and its target is replaced. Devices and pipes are written directly:
    renaming a file over /dev/null would replace the device.

    Attributes:
        name: the path as given or derived from the input's name, "-" for standard output.
    """

    def __init__(self, source: str, target: str | None, suffix: str, force: bool) -> None:
        if target is None:
            piped = source == "-" or _descriptor(source) is not None
            target = "-" if piped else str(Path(source).with_suffix(suffix))
        self.name = target
        self._descriptor = 1 if target == "-" else _descriptor(target)
        if self._descriptor == 1:
            if not force and sys.stdout is not None and sys.stdout.isatty():
                raise click.UsageError("the output is binary and would go to the terminal: name a file with -o")
            return
        try:
            if self._descriptor is not None:
                os.write(self._descriptor, b"")  # fails where it is closed, or open for reading alone
                return
            self._path = Path(target).resolve()
            mode = Path(target).stat().st_mode if Path(target).exists() else None
            self._direct = mode is not None and not stat.S_ISREG(mode)
            folder_there = self._path.parent.is_dir()
            same = mode is not None and not self._direct and source != "-" and self._path.samefile(source)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
            raise OutputError(f"{target}: {getattr(error, 'strerror', None) or error}") from error
        self._force = force
        if mode is not None and stat.S_ISDIR(mode):
            raise OutputError(f"{target or '(no name)'}: is a directory; name the file to write")
        if re.split(r"[\\/]" if os.altsep else "/", target)[-1] in ("", ".", ".."):
            raise OutputError(f"{target}: there is no such directory; name the file to write")
        if same:
            raise OutputError(f"{target}: is the input itself")
        if self._direct:
            self._path = Path(target)  # not what a link in /proc resolves to, which need be no path
            return
        if mode is not None and not force:
            raise self._exists()
        if not folder_there:
            raise OutputError(f"{target}: there is no directory {self._path.parent}")
        if not os.access(self._path.parent, os.W_OK | os.X_OK):
            raise OutputError(f"{target}: the directory cannot be written to")

    def write(self, data: bytes | memoryview) -> None:
        """Writes `data`; raises `OutputError`, leaving nothing behind."""
        if self._descriptor == 1:
            _write_stdout(data)
            return
        try:
            if self._descriptor is not None:
                with open(self._descriptor, "wb", closefd=False) as file:
                    file.write(data)
            elif self._direct:
                self._path.write_bytes(data)
            else:
                self._replace(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"{self.name}: {error.strerror or error}") from error

    def _replace(self, data: bytes | memoryview) -> None:
        # A name of fixed length: one made from the target's could pass the 255 bytes that file systems allow.
        temporary = self._path.with_name(f".hpcm-{os.urandom(8).hex()}.tmp")
        with interrupts.undoing(temporary.unlink):
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                if self._path.exists():
                    if not self._force:  # it appeared during the work
                        raise self._exists()
                    temporary.chmod(stat.S_IMODE(self._path.stat().st_mode))
                temporary.replace(self._path)
            except BaseException:  # interruptions too
                temporary.unlink(missing_ok=True)
                raise

    def _exists(self) -> OutputError:
        return OutputError(f"{self.name}: exists already; -f overwrites it")


# --------------------------------------------------------------------------------------------------------- progress


class _Progress:
    """A bar on standard error for work that lasts, if that is a terminal; entering gives the callback, or None.

    rich honours NO_COLOR and terminals that cannot draw. The bar is taken away at the end: the summary line stays.
    """

    def __init__(self, label: str, settings: _Settings) -> None:
        self._label = label
        self._wanted = not settings.quiet and sys.stderr is not None and sys.stderr.isatty()
        self._started = time.perf_counter()
        self._bar: Progress | None = None
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Callable[[float], None] | None:
        return self._update if self._wanted else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _update(self, fraction: float) -> None:
        if self._bar is None:
            if time.perf_counter() - self._started < _PROGRESS_AFTER_SECONDS:
                return
            from rich.console import Console
            from rich.progress import Progress

            bar = Progress(console=Console(stderr=True), transient=True)
            bar.add_task(self._label, total=1.0)
            try:
                bar.start()
            except RuntimeError:  # the system starts no more threads
                self._started = math.inf
                return
            self._bar = bar
            self._undo.callback(bar.stop)
            self._undo.enter_context(interrupts.undoing(bar.stop))  # the cursor is hidden
        self._bar.update(self._bar.task_ids[0], completed=fraction)


# ------------------------------------------------------------------------------------------------------ entry point


def _leave_busy_cores() -> None:
    """Has numpy's OpenBLAS use the cores that nobody else is using, unless the environment says how many.

    Its threads wait for each other in a loop: one that shares its core with another program holds up all, and decoding
    beside a busy process on two cores takes ten times as long as with one thread. It reads the variable when numpy is
    imported, which no command has done yet.
    """
    cores = threads.count()
    with contextlib.suppress(OSError, ValueError, IndexError):  # no /proc, as on macOS and Windows
        running = int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].split("/")[0])  # this one included
        cores = max(1, cores - (running - 1))
    # It ends the process where one of its threads does not start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(cores if threads.can_start(cores - 1) else 1))


def main() -> NoReturn:
    """The ``hpcm`` program: runs `cli` and ends the process.

    SIGTERM and SIGHUP end it as SIGINT does, so that no temporary file stays. The process is left through ``os._exit``
    once all is flushed: taking down an interpreter that has loaded numpy and onnxruntime takes 50 to 130 ms.
    """
    _leave_busy_cores()
    interrupts.install()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # Pillow's, about oddities in files: each takes two lines
    code: object = HpcmError.exit_code
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:  # outside the commands: while the line was parsed or the last line said
        code = interrupts.EXIT_CODE
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # absent, closed, or its reader is gone
            stream.flush()
    number = code if isinstance(code, int) else HpcmError.exit_code
    if "concurrent.futures.process" in sys.modules:  # removes the semaphores of its processes at the usual end only
        sys.exit(number)
    os._exit(number)
