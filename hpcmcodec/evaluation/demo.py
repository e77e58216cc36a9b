"""One photograph at three qualities: files are written, read back, measured, and shown beside JPEGs of their size.

    python -m hpcmcodec.evaluation.demo [IMAGE] [--output-folder demo] [--readme-picture PATH]

Without IMAGE the photograph is `coffee` from scikit-image's wheel. PSNR is taken over all pixels and RGB channels.
Times are those of `encode` and `decode` in this process, after one tiny image has loaded the model;
`python -m tools speed` measures whole commands.
"""

import argparse
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hpcmcodec import decode, encode
from hpcmcodec.container import DEFAULT_MAX_PIXELS
from hpcmcodec.errors import HpcmError
from hpcmcodec.evaluation import sample_photo
from hpcmcodec.evaluation.codecs import CODECS, Coded, jpeg_near, near
from hpcmcodec.evaluation.metrics import psnr_db, ssimulacra2
from hpcmcodec.image import load, plain, to_image

Pixels = npt.NDArray[np.uint8]

QUALITIES = (20, 50, 80)
COLUMN = 320  # width of a picture in the sheet, pixels: four fit a common screen side by side
README_LIMIT = 400_000  # bytes of the README's picture
GAP = 12
TEXT_SIZE = 15
LINE = 20
PAPER, INK, MARK = (255, 255, 255), (32, 32, 32), (255, 64, 0)


class Result(NamedTuple):
    """One quality of the photograph: the codec's file and its picture, and the JPEG nearest in size."""

    quality: int
    hpcm: Coded
    encode_seconds: float
    decode_seconds: float
    jpeg: Coded


class Panel(NamedTuple):
    """A picture in a sheet and the lines of text above it."""

    image: Image.Image
    lines: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code, which for an image that cannot be coded is that of `hpcm encode`."""
    parser = argparse.ArgumentParser(prog="python -m hpcmcodec.evaluation.demo", description=__doc__.split("\n")[0])
    parser.add_argument("image", nargs="?", type=Path, help="a photograph (default: a cup of coffee)")
    parser.add_argument("--output-folder", type=Path, default=Path("demo"), help="where files go (default: demo)")
    parser.add_argument(
        "--readme-picture",
        type=Path,
        metavar="PATH",
        help=f"also write four panels, AVIF's among them, as a PNG below {README_LIMIT // 1000} kB "
        "(needs the package ssimulacra2)",
    )
    options = parser.parse_args(arguments)
    try:
        path = options.image or sample_photo("coffee")
        _run(path, options.output_folder, options.readme_picture)
    except HpcmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (FileNotFoundError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


def _run(path: Path, folder: Path, readme_picture: Path | None) -> None:
    picture = plain(load(path, max_pixels=DEFAULT_MAX_PIXELS))
    height, width, _ = picture.pixels.shape
    console = Console()
    console.print(f"{path.name}: {width} x {height} pixels, {path.stat().st_size:,} bytes", highlight=False)
    for note in picture.notes:
        console.print(note, highlight=False)

    _code(np.zeros((16, 16, 3), np.uint8), QUALITIES[0])
    results = [_measure(picture.pixels, quality) for quality in QUALITIES]
    console.print(_table(picture.pixels, results))
    console.print(
        "bpp: bits per pixel. JPEG: Pillow's, at the quality whose file is nearest in size, 4:2:0 or 4:4:4, "
        "whichever has the better PSNR. Pictures without metadata; seconds without start-up.",
        highlight=False,
    )

    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{path.stem}-q{result.quality}.hpcm" for result in results]
    for target, result in zip(written, results, strict=True):
        target.write_bytes(result.hpcm.data)
    sheet = folder / f"{path.stem}-side-by-side.png"
    # The crops are in the photograph's own colour space.
    comparison_sheet(picture.pixels, results).save(sheet, icc_profile=to_image(picture).info.get("icc_profile"))
    written.append(sheet)
    if readme_picture is not None:
        readme_picture.write_bytes(readme_png(picture.pixels, results[0]))
        written.append(readme_picture)
    for target in written:
        console.print(f"wrote {target}", highlight=False, soft_wrap=True)


def _code(pixels: Pixels, quality: int) -> tuple[Coded, float, float]:
    start = time.perf_counter()
    data = encode(pixels, quality)
    encoded = time.perf_counter()
    image = decode(data)
    decoded = time.perf_counter()
    return Coded(data, np.asarray(image)), encoded - start, decoded - encoded


def _measure(pixels: Pixels, quality: int) -> Result:
    coded, encode_seconds, decode_seconds = _code(pixels, quality)
    return Result(quality, coded, encode_seconds, decode_seconds, jpeg_near(pixels, len(coded.data)))


def _table(pixels: Pixels, results: Sequence[Result]) -> Table:
    height, width, _ = pixels.shape
    table = Table(box=SIMPLE_HEAD)
    headings = ("quality", "bytes", "bpp", "PSNR dB", "encode s", "decode s", "JPEG bytes", "JPEG dB")
    for heading in headings:
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            f"{result.quality}",
            f"{len(result.hpcm.data):,}",
            f"{8 * len(result.hpcm.data) / (width * height):.3f}",
            f"{psnr_db(pixels, result.hpcm.pixels):.2f}",
            f"{result.encode_seconds:.2f}",
            f"{result.decode_seconds:.2f}",
            f"{len(result.jpeg.data):,}",
            f"{psnr_db(pixels, result.jpeg.pixels):.2f}",
        )
    return table


def comparison_sheet(pixels: Pixels, results: Sequence[Result]) -> Image.Image:
    """Two rows of panels. Above, the centre of the photograph, and of the picture at each quality; below each of these,
    the centre of the JPEG nearest in size. Below the original stands the whole photograph with the crop marked.

    pixels: the photograph (H, W, 3) uint8.
    """
    height, width, _ = pixels.shape
    box = _centre(width, height, COLUMN, COLUMN)
    whole = Image.fromarray(pixels)
    overview = whole.copy()
    overview.thumbnail((COLUMN, COLUMN), Image.Resampling.LANCZOS)
    reduced = overview.width / width
    ImageDraw.Draw(overview).rectangle([round(edge * reduced) for edge in box], outline=MARK, width=2)

    upper = [Panel(_enlarged(whole.crop(box)), (f"original, {width} x {height} pixels", f"{8 * 3} bpp uncompressed"))]
    lower = [Panel(_enlarged(overview), ("the whole photograph", "and where the crops are"))]
    for result in results:
        upper.append(_panel(pixels, result.hpcm, f"hpcm, quality {result.quality}", box))
        lower.append(_panel(pixels, result.jpeg, "JPEG nearest in size", box))
    return _sheet([upper, lower])


def readme_png(pixels: Pixels, result: Result) -> bytes:
    """PNG file of four crops: the original, the codec's picture, and the AVIF (`tune=iq`) and the JPEG nearest in size.

    Beside the sizes stands SSIMULACRA2 of the whole photograph. The crops are as large as they can be while the file
    stays below `README_LIMIT`. pixels: as in `comparison_sheet`.
    """
    height, width, _ = pixels.shape
    avif = near(CODECS["avif-iq"], pixels, len(result.hpcm.data))[1]
    coded = {
        f"hpcm, quality {result.quality}": result.hpcm,
        "AVIF (tune=iq) nearest in size": avif,
        "JPEG nearest in size": result.jpeg,
    }
    figures = {
        title: f"{len(each.data):,} bytes, SSIMULACRA2 {ssimulacra2(pixels, each.pixels):.0f}"
        for title, each in coded.items()
    }
    for side in range(COLUMN, 0, -16):
        box = _centre(width, height, side, side)
        original = Panel(_enlarged(Image.fromarray(pixels).crop(box)), ("original", f"{width} x {height} pixels"))
        others = [
            Panel(_enlarged(Image.fromarray(each.pixels).crop(box)), (title, figures[title]))
            for title, each in coded.items()
        ]
        file = io.BytesIO()
        _sheet([[original, *others]], columns=side).save(file, "PNG", optimize=True)
        if file.tell() < README_LIMIT:
            break
    return file.getvalue()


def _centre(width: int, height: int, box_width: int, box_height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a box in the middle of an image, cut to the image where that is smaller."""
    box_width, box_height = min(width, box_width), min(height, box_height)
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def _enlarged(image: Image.Image) -> Image.Image:
    """A small image enlarged by a whole factor without interpolation; a large one as it is."""
    factor = max(1, COLUMN // (2 * max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _panel(pixels: Pixels, coded: Coded, title: str, box: tuple[int, int, int, int]) -> Panel:
    height, width, _ = pixels.shape
    n_bytes = len(coded.data)
    figures = f"{n_bytes:,} bytes, {8 * n_bytes / (width * height):.2f} bpp, {psnr_db(pixels, coded.pixels):.2f} dB"
    return Panel(_enlarged(Image.fromarray(coded.pixels).crop(box)), (title, figures))


def _sheet(rows: Sequence[Sequence[Panel]], columns: int = COLUMN) -> Image.Image:
    """Rows of panels on white. columns: their common width in pixels, which is larger where the text needs it."""
    font = ImageFont.load_default(size=TEXT_SIZE)
    panels = [panel for row in rows for panel in row]
    text_width = max(font.getlength(line) for panel in panels for line in panel.lines)
    column = max(columns, int(text_width) + 1)
    heights = [max(LINE * len(panel.lines) + panel.image.height for panel in row) + GAP for row in rows]
    sheet = Image.new("RGB", (GAP + len(rows[0]) * (column + GAP), GAP + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for row, row_height in zip(rows, heights, strict=True):
        for i, panel in enumerate(row):
            left = GAP + i * (column + GAP)
            for k, line in enumerate(panel.lines):
                draw.text((left, top + k * LINE), line, INK, font)
            sheet.paste(panel.image, (left, top + LINE * len(panel.lines)))
        top += row_height
    return sheet


if __name__ == "__main__":
    sys.exit(main())
