"""What tiles cost and what they are for: the size of files by tile side, and the time of a region beside the whole.

    python -m tools tiles                                  # 6 megapixels
    python -m tools tiles --size 12288x8192 --sides 64     # 100 megapixels; minutes

The picture is that of `bench`: the photographs of scikit-image's wheel, mirrored. Regions of 512 x 512 pixels are
decoded inside one tile and over the corner of four, each in a process of its own, whose peak memory is shown.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from hpcmcodec import codec
from tools import facts
from tools.bench import bench_photo

_REGION = 512

_DECODE = """
import json, sys, time
from hpcmcodec import codec
from hpcmcodec.evaluation.process import peak_bytes
from hpcmcodec.weights import load
data, region = open(sys.argv[1], "rb").read(), json.loads(sys.argv[2])
load()
start = time.perf_counter()
codec.decode_picture(data, region=region and tuple(region), max_pixels=None)
print(json.dumps([time.perf_counter() - start, peak_bytes()]))
"""


@click.command("tiles")
@click.option("--size", default="3072x2048", show_default=True, metavar="WIDTHxHEIGHT", help="Of the picture.")
@click.option("--sides", default="256,128,64", show_default=True, help="Tile sides; sizes are compared with the first.")
@click.option("--qualities", default="50", show_default=True)
def command(size: str, sides: str, qualities: str) -> None:
    """Sizes of files by tile side, and times of regions."""
    width, height = (int(n) for n in size.split("x"))
    pixels = bench_photo(width, height)
    click.echo(f"{facts.about('')['machine']}; {width}x{height}\n")
    click.echo("| q | tile side | bytes | | whole, s | MB | region in a tile, s | MB | over a corner, s | MB |")
    click.echo("|" + "---|" * 10)
    for quality in (float(q) for q in qualities.split(",")):
        first = 0
        for side in (int(s) for s in sides.split(",")):
            data = codec.encode(pixels, quality, tile=side, max_pixels=None)
            first = first or len(data)
            inside = (16 * side // 2 - _REGION // 2,) * 2
            corner = (16 * side - _REGION // 2,) * 2
            cells = []
            for place in (None, inside, corner):
                fits = place is None or max(place) + _REGION <= min(width, height)
                cells += list(_timed(data, place)) if fits else ["", ""]
            price = f"{100 * (len(data) / first - 1):+.2f}%"
            click.echo(f"| {quality:g} | {side} | {len(data):,} | {price} | {' | '.join(cells)} |")


def _timed(data: bytes, place: tuple[int, ...] | None) -> tuple[str, str]:
    """Seconds of decoding, without start-up, and peak megabytes of the process, as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.hpcm")
        path.write_bytes(data)
        region = [*place, _REGION, _REGION] if place else None
        command = [sys.executable, "-c", _DECODE, str(path), json.dumps(region)]
        seconds, peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return f"{seconds:.2f}", f"{peak / 1e6:.0f}"
