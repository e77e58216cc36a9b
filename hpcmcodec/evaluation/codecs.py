"""The codecs that are compared, each at fixed settings: pixels -> the bytes of a file -> pixels.

Files hold the picture alone, without metadata. Colour planes keep their full resolution (4:4:4) in every codec but
lossy WebP, which halves it (4:2:0). Formats that Pillow does not write itself come from plugins, which are optional.
"""

import functools
import hashlib
import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, features

from hpcmcodec import __version__, codec, refine, weights
from hpcmcodec.evaluation.metrics import psnr_db

Pixels = npt.NDArray[np.uint8]
Subsampling = Literal["4:4:4", "4:2:0"]


class Coded(NamedTuple):
    """A coded picture: the file's bytes, and the pixels ``(H, W, 3)`` uint8 decoded from them."""

    data: bytes
    pixels: Pixels


@dataclass(frozen=True)
class Codec:
    """A codec at fixed settings.

    Attributes:
        name: the name in tables and plots.
        settings: the settings in words. They are part of the key of stored results, so that other settings are measured
            anew.
        qualities: the qualities that are measured by default; they span the range of interest, smallest file first.
        search: the lowest quality, the highest, and the distance between those that `near` tries.
        encode: (pixels ``(H, W, 3)`` uint8, quality, threads) -> the bytes of a file. `hpcm` ignores the threads and
            takes their number from OMP_NUM_THREADS.
        decode: (bytes, threads) -> pixels ``(H, W, 3)`` uint8.
        version: returns the versions of the encoder and its library, for the key of stored results.
        missing: returns the packages to install before the codec can be used, none where it can.
    """

    name: str
    settings: str
    qualities: tuple[float, ...]
    search: tuple[float, float, float]
    encode: Callable[[Pixels, float, int], bytes]
    decode: Callable[[bytes, int], Pixels]
    version: Callable[[], str]
    missing: Callable[[], list[str]] = list

    def code(self, pixels: Pixels, quality: float, threads: int = 1) -> Coded:
        """Encode pixels ``(H, W, 3)`` uint8, and decode the file again."""
        data = self.encode(pixels, quality, threads)
        return Coded(data, self.decode(data, threads))


def jpeg(pixels: Pixels, quality: int, subsampling: Subsampling = "4:4:4") -> Coded:
    """A baseline JPEG of pixels ``(H, W, 3)`` uint8, with Huffman tables fitted to the picture; ``quality`` 1..100."""
    return _jpeg(subsampling).code(pixels, quality)


def jpeg_near(pixels: Pixels, n_bytes: int) -> Coded:
    """The JPEG whose size is nearest to ``n_bytes``, with 4:4:4 or 4:2:0, whichever gives the better PSNR.

    4:2:0 is better at low rates.
    """
    found = (near(_jpeg(subsampling), pixels, n_bytes)[1] for subsampling in ("4:4:4", "4:2:0"))
    return max(found, key=lambda coded: psnr_db(pixels, coded.pixels))


def near(codec: Codec, pixels: Pixels, n_bytes: int, threads: int = 1) -> tuple[float, Coded]:
    """The quality at which the file's size is nearest to ``n_bytes``, found by bisection, and the file there."""
    first, last, step = codec.search
    at = functools.cache(lambda i: codec.encode(pixels, first + i * step, threads))
    low, high = 0, round((last - first) / step)
    while high - low > 1:
        middle = (low + high) // 2
        if len(at(middle)) < n_bytes:
            low = middle
        else:
            high = middle
    best = min((low, high), key=lambda i: abs(len(at(i)) - n_bytes))
    return first + best * step, Coded(at(best), codec.decode(at(best), threads))


QUALITIES = tuple(float(q) for q in range(0, 101, 10))


def _hpcm(name: str, effort: int, qualities: tuple[float, ...]) -> Codec:
    def encode(pixels: Pixels, quality: float, threads: int) -> bytes:
        return codec.encode(pixels, quality, effort=effort, max_pixels=None, max_side=None)

    return Codec(
        name,
        "light engine" + (f", {refine.ROUNDS[effort]} rounds" if effort else ""),
        qualities,
        (0, 100, 0.5),
        encode,
        _hpcm_decode,
        functools.partial(_hpcm_version, weights.DEFAULT_MODEL),
    )


def _of_model(key: str) -> Codec:
    """The codec `hpcm:MODEL`. A model of one lambda has one quality, which its files are called 0.

    Raises what `weights.load` raises where there is no such model.
    """
    model = key.partition(":")[2]
    several = weights.load(model, transforms=False).config.qualities > 0

    def encode(pixels: Pixels, quality: float, threads: int) -> bytes:
        asked = quality if several else None
        return codec.encode(pixels, asked, model=model, max_pixels=None, max_side=None)

    return Codec(
        key,
        "of the model's qualities" if several else "of one lambda",
        QUALITIES if several else (0.0,),
        (0, 100, 0.5) if several else (0, 0, 1),
        encode,
        _hpcm_decode,
        functools.partial(_hpcm_version, model),
    )


def _hpcm_decode(data: bytes, threads: int) -> Pixels:
    return np.asarray(codec.decode(data, max_pixels=None, max_side=None))


@functools.cache
def _hpcm_version(model: str) -> str:
    """Release, model, and a hash of the model's files, since the model id does not cover the encoder's weights."""
    if model == weights.DEFAULT_MODEL and model not in weights.packaged():
        return __version__
    path = weights.load(model, transforms=False).path
    digest = hashlib.sha256()
    for file in sorted(path.parent.glob(f"{path.stem}.*")):
        digest.update(file.read_bytes())
    return f"{__version__} {path.stem} {weights.read_metadata(path)['model_id']} {digest.hexdigest()[:8]}"


def _pillow(image_format: str, options: Callable[[float, int], Mapping[str, object]]) -> Callable[..., bytes]:
    def encode(pixels: Pixels, quality: float, threads: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, image_format, **options(quality, threads))
        return file.getvalue()

    return encode


def _pillow_decode(data: bytes, threads: int) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _pillow_version(library: str) -> Callable[[], str]:
    return lambda: f"Pillow {version('pillow')}, {library} {features.version(library)}"


def _pillow_lacks(library: str, remedy: str) -> Callable[[], list[str]]:
    return lambda: [] if features.check(library) else [remedy]


@functools.cache
def _libaom_lacks(tune: str) -> bool:
    """Whether Pillow's libaom is too old for a tuning."""
    try:
        Image.new("RGB", (16, 16)).save(io.BytesIO(), "AVIF", codec="aom", advanced={"tune": tune})
    except (OSError, ValueError):
        return True
    return False


def _plugin(module: str, package: str) -> Callable[[], list[str]]:
    return lambda: [] if importlib.util.find_spec(module) else [package]


def _jpeg(subsampling: Subsampling) -> Codec:
    return Codec(
        "JPEG",
        f"{subsampling}, baseline, optimised Huffman tables",
        (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95),
        (1, 100, 1),
        _pillow("JPEG", lambda q, t: {"quality": round(q), "subsampling": subsampling, "optimize": True}),
        _pillow_decode,
        _pillow_version("jpg"),
    )


def _avif(name: str, *, tune: str = "psnr", speed: int = 6) -> Codec:
    def options(quality: float, threads: int) -> dict[str, object]:
        return {
            "quality": round(quality),
            "speed": speed,
            "subsampling": "4:4:4",
            "codec": "aom",
            "max_threads": threads,
            "advanced": {"tune": tune},
        }

    return Codec(
        name,
        f"4:4:4, libaom, speed {speed}, tune {tune}",
        (10, 20, 30, 40, 50, 60, 70, 80, 90),
        (0, 100, 1),
        _pillow("AVIF", options),
        _pillow_decode,
        _pillow_version("avif"),
        lambda: ["pillow>=12"] if not features.check("avif") or _libaom_lacks(tune) else [],
    )


def _jxl_encode(pixels: Pixels, quality: float, threads: int) -> bytes:
    import pillow_jxl  # noqa: F401  registers the format

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JXL", quality=round(quality), effort=7, num_threads=threads)
    return file.getvalue()


def _jxl_decode(data: bytes, threads: int) -> Pixels:
    import pillow_jxl  # noqa: F401

    return _pillow_decode(data, threads)


def _heic_encode(pixels: Pixels, quality: float, threads: int) -> bytes:
    import pillow_heif

    file = io.BytesIO()
    image = pillow_heif.from_pillow(Image.fromarray(pixels))
    image.save(file, quality=round(quality), chroma=444, enc_params={"x265:pools": str(threads)})
    return file.getvalue()


def _heic_decode(data: bytes, threads: int) -> Pixels:
    import pillow_heif

    pillow_heif.options.DECODE_THREADS = threads
    image = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True)
    return np.asarray(image.to_pillow().convert("RGB"))


def _heic_version() -> str:
    import pillow_heif

    encoder = pillow_heif.libheif_info()["HEIF"]
    return f"pillow-heif {version('pillow-heif')}, libheif {pillow_heif.libheif_version()}, {encoder}"


class _Codecs(dict[str, Codec]):
    """Codecs by their keys; beside those that are listed, `hpcm:MODEL` is the codec of a model."""

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (isinstance(key, str) and key.startswith("hpcm:"))

    def __missing__(self, key: str) -> Codec:
        if key not in self:
            raise KeyError(key)
        return _of_model(key)


_LISTED: Mapping[str, Codec] = {
    "hpcm": _hpcm("hpcm", 0, QUALITIES),
    "hpcm-slow": _hpcm("hpcm (effort 9)", 9, (0, 10, 30, 50, 70, 90, 100)),
    "jpeg": _jpeg("4:4:4"),
    "webp": Codec(
        "WebP",
        "4:2:0, method 6",
        (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95),
        (0, 100, 1),
        _pillow("WEBP", lambda q, t: {"quality": round(q), "method": 6}),
        _pillow_decode,
        _pillow_version("webp"),
        _pillow_lacks("webp", "pillow"),
    ),
    "avif": _avif("AVIF"),
    "avif-slow": _avif("AVIF (speed 4)", speed=4),
    "avif-ssim": _avif("AVIF (ssim)", tune="ssim"),
    "avif-iq": _avif("AVIF (iq)", tune="iq"),
    "jxl": Codec(
        "JPEG XL",
        "effort 7",
        (5, 15, 30, 45, 60, 70, 80, 90, 95),
        (1, 99, 1),
        _jxl_encode,
        _jxl_decode,
        lambda: f"pillow-jxl-plugin {version('pillow-jxl-plugin')}",
        _plugin("pillow_jxl", "pillow-jxl-plugin"),
    ),
    "heic": Codec(
        "HEIC",
        "4:4:4, x265",
        (10, 15, 20, 30, 40, 50, 60, 70, 80),
        (1, 99, 1),
        _heic_encode,
        _heic_decode,
        _heic_version,
        _plugin("pillow_heif", "pillow-heif"),
    ),
    # The quality of JPEG 2000 is the PSNR in dB that the encoder aims at.
    "jpeg2000": Codec(
        "JPEG 2000",
        "4:4:4, OpenJPEG, 9/7 wavelet, aimed at a PSNR",
        (26, 28, 30, 32, 34, 36, 38, 40, 42),
        (15, 60, 0.25),
        _pillow(
            "JPEG2000",
            lambda q, t: {"quality_mode": "dB", "quality_layers": [q], "irreversible": True, "mct": 1},
        ),
        _pillow_decode,
        _pillow_version("jpg_2000"),
        _pillow_lacks("jpg_2000", "pillow"),
    ),
}
CODECS: Mapping[str, Codec] = _Codecs(_LISTED)


def installed(keys: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Those of the codecs named that can be used here; `say` is told what the others need."""
    lacking = {key: needs for key in keys if (needs := CODECS[key].missing())}
    for key, needs in lacking.items():
        say(f"codec {key} is left out: pip install {' '.join(needs)}")
    return [key for key in keys if key not in lacking]
