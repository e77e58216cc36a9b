"""Measuring the codec on real files: a demo, whole-command times, rate and distortion on a folder of images.

python -m hpcmcodec.evaluation.demo [IMAGE]     three qualities of one photograph, beside JPEG
python -m hpcmcodec.evaluation.speed [IMAGE]    whole processes, in units of `import torch`
python -m hpcmcodec.evaluation.kodak FOLDER     rate-distortion points, BD-rates, previews
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
