"""No runtime that this project loads reports its use to anyone.

As published, ONNX Runtime (from 1.29 on) tells Microsoft of every session, and OpenVINO and NNCF tell Google Analytics
of every import, OpenVINO from a fork of the process.
"""

import os
import sys


def switch_off_usage_reports() -> None:
    """Switches them off in this process and its children; takes effect before the runtimes are imported."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    # OpenVINO and NNCF do without this package where it can't be imported; its own opt-out writes into the home folder.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
