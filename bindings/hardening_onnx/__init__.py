"""A drop-in, allow-list InferenceSession: `wrap` a model or an existing session and call `run` as before.

ONNX Runtime's telemetry is switched off. Import this package before onnxruntime, or set ORT_DISABLE_TELEMETRY=1 for
the process: an onnxruntime that was imported first has queued one event about the machine, which nothing takes back.
"""

import logging
import os
import sys

if "onnxruntime" in sys.modules and not os.environ.get("ORT_DISABLE_TELEMETRY"):
    logging.getLogger("hardening").warning(
        "onnxruntime was imported before hardening_onnx: its telemetry is off from here on, but one event about this "
        "machine may be sent; set ORT_DISABLE_TELEMETRY=1"
    )
# A security library must not phone home; ONNX Runtime reads this when it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

from hardening_onnx.session import HardenedSession, wrap

onnxruntime.disable_telemetry_events()

__all__ = ["HardenedSession", "wrap"]
