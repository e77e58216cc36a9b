"""onnxruntime, which this package imports here alone: with its telemetry switched off.

From 1.30 on its wheels keep an identifier of the machine and a database under the home directory, and send events to
their maker, unless this variable says otherwise before the library is loaded (onnxruntime's Privacy.md). Whatever it
was set to: this package sends nothing.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

__all__ = ["onnxruntime"]
