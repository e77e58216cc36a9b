"""One file at a time: an image coded, a .hpcm file decoded or verified, and a `Record` of what came of it.

The functions ending in ``_file`` are for engines that run them in processes of their own: arguments and results can be
pickled, the model stays loaded, and whatever is wrong with a file is said in the record. `loaded`, `decoded` and
`written` are what they share with the commands.
"""

from __future__ import annotations

import io
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from hpcmcodec import checksums, container, formats
from hpcmcodec.batch.records import DONE, FAILED, SKIPPED, Record, Task
from hpcmcodec.cli.files import Output, about, check_input, opened
from hpcmcodec.cli.metadata import Changes
from hpcmcodec.cli.needs import require_memory
from hpcmcodec.container import DEFAULT_MAX_PIXELS, DEFAULT_MAX_SIDE, Limits
from hpcmcodec.errors import HpcmError, InputError, UnsupportedError
from hpcmcodec.formats import FORMATS

if TYPE_CHECKING:
    from typing import BinaryIO, Unpack

    from hpcmcodec.image import Picture

    Progress = Callable[[float], None]


class Encoding(TypedDict, total=False):
    """The settings of `encode_file`, which may all be left out.

    Attributes:
        quality, target_size, target_bpp, target_psnr, effort, tile, verify, background, device, model: as for
            `hpcmcodec.encode`.
        max_pixels, max_side: as there, and the same by default.
        strict: pictures that are no photographs are `UnsupportedError`.
        strip, keep: kinds of metadata to drop, or to keep alone, of `formats.METADATA_KINDS`.
        exif, xmp, icc: paths of files of these to take instead.
        smaller_or_skip: write nothing where the file would be no smaller than the image file; the status is "skipped".
    """

    quality: float | None
    target_size: int | None
    target_bpp: float | None
    target_psnr: float | None
    effort: int
    tile: int
    verify: bool
    background: str | tuple[int, int, int] | None
    device: str
    model: str
    max_pixels: int
    max_side: int
    strict: bool
    strip: list[str]
    keep: list[str] | None
    exif: str | None
    xmp: str | None
    icc: str | None
    smaller_or_skip: bool


class Decoding(TypedDict, total=False):
    """The settings of `decode_file`, which may all be left out.

    Attributes:
        form: a key of `formats.FORMATS`; None: that of the output's suffix, or PNG.
        depth: 8 or 16 bits; None is 16 where the coded picture had more than 8 and the format holds them.
        scale, region, device: as for `hpcmcodec.decode`.
        side: scale the picture down to fit `side` x `side` pixels.
        background: 8-bit RGB to put transparent pixels on.
        max_pixels, max_side: as for `hpcmcodec.decode`, and the same by default.
    """

    form: str | None
    depth: int | None
    scale: str | None
    region: tuple[int, int, int, int] | None
    side: int | None
    background: tuple[int, int, int] | None
    device: str
    max_pixels: int
    max_side: int


class Verifying(TypedDict, total=False):
    """The settings of `verify_file`.

    Attributes:
        decode: decode too, which compares the checksums of latents and pixels.
        device: as for `hpcmcodec.decode`.
        max_pixels, max_side: as for `hpcmcodec.decode`, and the same by default.
    """

    decode: bool
    device: str
    max_pixels: int
    max_side: int


def encode_file(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    preserve_times: bool = False,
    checksum: bool = False,
    **settings: Unpack[Encoding],
) -> Record:
    """Code an image file as a .hpcm file, which appears whole or not at all.

    Args:
        src, dst: paths of the image and of the file to write.
        overwrite: whether a file that exists is replaced; else the record has exit code 6.
        preserve_times: give the output the times of the input.
        checksum: put the input's SHA-256 into the record.
        settings: those of `Encoding`.

    Raises TypeError for a setting that there is not. Whatever is wrong with the picture is in the record.
    """
    _check(settings, Encoding)

    def work(record: Record) -> Record:
        from hpcmcodec import codec

        output = Output(record.input, record.output, ".hpcm", overwrite)
        require_memory()
        rest: dict[str, Any] = dict(settings)
        changes = Changes(**{name: rest.pop(name, unset) for name, unset in _UNCHANGED.items()})
        strict, smaller = rest.pop("strict", False), rest.pop("smaller_or_skip", False)
        limits = _limits(rest)
        picture, notes = loaded(record.input, strict=strict, max_pixels=limits["max_pixels"])
        data = codec.encode(changes.applied(picture), **{"quality": None, **rest}, **limits)
        header = container.parse_header(data, **limits)
        height, width, _ = picture.pixels.shape
        skipped = smaller and len(data) >= record.size
        if not skipped:
            output.write(data)
        return replace(
            record,
            status=SKIPPED if skipped else DONE,
            bytes=len(data),
            width=width,
            height=height,
            quality=header.quality.percent,
            effort=rest.get("effort", 0),
            model_id=header.model_id.hex(),
            notes=(*notes, *output.notes, *([_no_fewer(len(data), record.size)] if skipped else [])),
        )

    return _recorded(src, dst, work, dict(settings), checksum, preserve_times)


def decode_file(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    preserve_times: bool = False,
    checksum: bool = False,
    **settings: Unpack[Decoding],
) -> Record:
    """Decode a .hpcm file to an image file, which appears whole or not at all.

    `src`, `dst`, `overwrite`, `preserve_times` and `checksum` are those of `encode_file`, `settings` those of
    `Decoding`. Raises TypeError for a setting that there is not.
    """
    _check(settings, Decoding)

    def work(record: Record) -> Record:
        rest: dict[str, Any] = dict(settings)
        limits = _limits(rest)
        form = rest.pop("form", None) or formats.of_name(record.output) or "png"
        output = Output(record.input, record.output, FORMATS[form].suffixes[0], overwrite)
        require_memory()
        with opened(record.input) as stream:
            data = container.read(stream, **limits)
        header = container.parse_header(data, **limits)
        picture = decoded(data, form, limits, **rest)
        file, notes = written(picture, form)
        output.write(file.getbuffer())
        height, width, _ = picture.pixels.shape
        return replace(
            record,
            status=DONE,
            bytes=file.getbuffer().nbytes,
            width=width,
            height=height,
            quality=header.quality.percent,
            model_id=header.model_id.hex(),
            notes=(*notes, *output.notes),
        )

    return _recorded(src, dst, work, dict(settings), checksum, preserve_times)


def verify_file(src: str | os.PathLike[str], *, checksum: bool = False, **settings: Unpack[Verifying]) -> Record:
    """Check that a .hpcm file is whole: the checksum over all bytes and, with `decode`, those of what it decodes to.

    `src` and `checksum` are those of `encode_file`, `settings` those of `Verifying`. Raises TypeError for a setting
    that there is not.
    """
    _check(settings, Verifying)

    def work(record: Record) -> Record:
        limits = _limits(dict(settings))
        with opened(record.input) as stream:
            data = container.read(stream, **limits)
        reader = container.Reader(data, **limits)
        reader.verify_complete()
        reader.metadata()
        if settings.get("decode"):
            require_memory()
            from hpcmcodec import codec

            codec.decode_picture(data, device=settings.get("device", "cpu"), depth=8, **limits)
        header = reader.header
        return replace(
            record,
            status=DONE,
            bytes=len(data),
            width=header.width,
            height=header.height,
            quality=header.quality.percent,
            model_id=header.model_id.hex(),
        )

    return _recorded(src, "", work, dict(settings), checksum, preserve_times=False)


def loaded(
    source: str | BinaryIO, *, strict: bool = False, judged: bool = True, max_pixels: int | None
) -> tuple[Picture, list[str]]:
    """An image as it is coded, and its notes: what was converted and, if `judged`, why it is no photograph.

    Raises what `image.load` raises, and `UnsupportedError` for what is no photograph where `strict`.
    """
    from hpcmcodec import image

    picture = image.load(source, max_pixels=max_pixels)
    why = image.not_a_photograph(picture) if judged or strict else ""
    advice = [f"this is no photograph ({why}): PNG or lossless WebP will serve it better"] if why else []
    if why and strict:
        raise UnsupportedError(advice[0])
    return picture, [*picture.notes, *advice]


def decoded(
    data: bytes,
    form: str,
    limits: Limits,
    *,
    depth: int | None = None,
    scale: str | None = None,
    region: tuple[int, int, int, int] | None = None,
    side: int | None = None,
    background: tuple[int, int, int] | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Picture:
    """The picture in a .hpcm file as it is to be written in the format `form`.

    The arguments are those of `Decoding`. Raises what `codec.decode` raises, and `InputError` for a region outside.
    """
    from hpcmcodec import codec, image
    from hpcmcodec.decoding import check_region

    header = container.parse_header(data, **limits)
    if region:
        try:
            check_region(region, header.width, header.height)
        except ValueError as error:
            raise InputError(str(error)) from error
    bits = depth or (None if FORMATS[form].deep else 8)
    shown = region[2:] if region else (header.width, header.height)
    smaller = image.sides_within(*shown, side) if side else shown
    picture = codec.decode_picture(
        data,
        device=device,
        scale=scale,
        thumbnail=not region and (bits or header.depth) == 8 and _is_shown_by_thumbnail(header, smaller),
        region=region,
        depth=bits,
        progress=progress,
        **limits,
    )
    picture = picture if smaller == shown else image.scaled_to(picture, *smaller)
    return image.flattened(picture, background) if background else picture


def written(picture: Picture, form: str) -> tuple[io.BytesIO, list[str]]:
    """The bytes of an image file in the format `form`, and notes on the picture and on what it cannot hold."""
    from hpcmcodec import image

    file = io.BytesIO()
    notes = image.write(picture, form, file)
    return file, [*picture.notes, *notes]


def _is_shown_by_thumbnail(header: container.Header, size: tuple[int, int]) -> bool:
    """Whether an eighth of the picture, which is larger than `size`, has at least as many columns and rows."""
    width, height = size
    return size != (header.width, header.height) and -(-header.width // 8) >= width and -(-header.height // 8) >= height


def _no_fewer(n_bytes: int, n_read: int) -> str:
    return f"not written: {n_bytes} bytes are no fewer than {n_read}"


_UNCHANGED: dict[str, Any] = {"strip": [], "keep": None, "exif": None, "xmp": None, "icc": None}


def _check(settings: Any, known: type) -> None:
    unknown = sorted(settings.keys() - known.__annotations__.keys())
    if unknown:
        raise TypeError(f"there is no setting {', '.join(unknown)}; there are {', '.join(known.__annotations__)}")


def _limits(settings: Any) -> Limits:
    """The limits in `settings`, which loses them."""
    taken = settings.pop
    return Limits(
        max_pixels=taken("max_pixels", None) or DEFAULT_MAX_PIXELS, max_side=taken("max_side", None) or DEFAULT_MAX_SIDE
    )


def _recorded(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    work: Callable[[Record], Record],
    settings: dict[str, Any],
    checksum: bool,
    preserve_times: bool,
) -> Record:
    """The record of `work`, whatever it raises."""
    started = time.perf_counter()
    record = Record(as_file(os.fspath(src)), as_file(os.fspath(dst)), settings=settings)
    try:
        with _told(record.input):
            check_input(record.input)
            facts = Path(record.input).stat()
            if not stat.S_ISREG(facts.st_mode):
                raise InputError(f"{record.input}: is no regular file; pipes and devices are inputs on their own")
            record = replace(record, size=facts.st_size, mtime=facts.st_mtime)
            record = replace(record, sha256=sha256(record.input)) if checksum else record
            record = work(record)
            if preserve_times and record.status == DONE:
                os.utime(record.output, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    except HpcmError as error:
        record = replace(record, status=FAILED, exit_code=error.exit_code, error=str(error))
    return replace(record, seconds=round(time.perf_counter() - started, 4))


@contextmanager
def _told(source: str) -> Iterator[None]:
    """Turns whatever is raised inside into an error of this package that names the input."""
    try:
        with about(source):
            yield
    except HpcmError:
        raise
    except MemoryError as error:
        raise UnsupportedError(f"{source}: not enough memory for an image of this size") from error
    except Exception as error:  # of a file among many, whatever it is: the others go on
        raise HpcmError(f"{source}: {type(error).__name__}: {error} (an error of the program)") from error


def as_file(path: str) -> str:
    """The path of a file in a form that is not taken for standard input or output."""
    return "./-" if path == "-" else path


def sha256(path: str) -> str:
    """SHA-256 of a file in hexadecimal. Raises `InputError` where it cannot be read."""
    with opened(path) as file:
        return checksums.sha256(file)


def perform(
    kind: str, settings: dict[str, Any], checksum: bool, preserve_times: bool, task: Task, attempt: int
) -> Record:
    """The record of one task of a run. What an attempt left that died is overwritten by the next one.

    Args:
        kind: "encode", "decode" or "verify".
        settings: those of that function.
        checksum, preserve_times: as for `encode_file`.
        task: the file.
        attempt: 0 for the first.
    """
    if kind == "verify":
        return verify_file(task.source, checksum=checksum, **settings)
    work = encode_file if kind == "encode" else decode_file
    overwrite = task.overwrite or attempt > 0
    return work(
        task.source,
        task.target,
        overwrite=overwrite,
        preserve_times=preserve_times,
        checksum=checksum,
        **settings,
    )
