"""The only place where this package imports onnxruntime, with its telemetry switched off.

From version 1.30 on, its wheels keep an identifier of the machine and a database under the home directory, and send
events to their maker, unless ORT_DISABLE_TELEMETRY is set before the library is loaded (onnxruntime's Privacy.md). The
variable is set here whatever its value was, so that this package sends nothing.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

__all__ = ["onnxruntime"]
