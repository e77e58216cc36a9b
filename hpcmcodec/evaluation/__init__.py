"""Measuring the codec on real files: rate and distortion, reports, times.

hpcm eval PATH...                                 rate and distortion against other codecs (`run`)
hpcm compare IMAGE FILE.hpcm...                   a page that shows a photograph and its files (`report`)
python -m hpcmcodec.evaluation.demo [IMAGE]       three qualities of one photograph, beside JPEG

Scripts that need a checkout, and make the figures in the papers, are in `tools/`.
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
