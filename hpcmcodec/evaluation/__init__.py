"""Measuring the codec on real files: rate and distortion, reports, times.

hpcm eval PATH...                                 rate and distortion against other codecs (`run`)
hpcm compare IMAGE FILE.hpcm...                   a page to look at (`report`)
python -m hpcmcodec.evaluation.demo [IMAGE]       three qualities of one photograph, beside JPEG
python -m hpcmcodec.evaluation.speed [IMAGE]      whole commands, in units of `import torch`
python -m hpcmcodec.evaluation.bench              speed and memory by size and phase, beside other codecs
python -m hpcmcodec.evaluation.previews PATH...   what the scales of a file are worth
python -m hpcmcodec.evaluation.monotone PATH...   whether a larger quality is always a better file
python -m hpcmcodec.evaluation.robustness PATH...  pictures that are no photographs, against AVIF and a flat picture
"""

import importlib.util
from pathlib import Path


def sample_photo(name: str) -> Path:
    """Path of a photograph in scikit-image's wheel, such as ``"coffee"``; scikit-image itself is not imported.

    Raises:
        FileNotFoundError: scikit-image is not installed, or its wheel has no such photograph.
    """
    spec = importlib.util.find_spec("skimage")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / f"{name}.png"
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"the sample photograph {name}.png comes with scikit-image, which is not installed or lacks it: "
        "`pip install --no-deps scikit-image`, or name an image of your own"
    )
