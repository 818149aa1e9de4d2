"""From a run folder to a verified bundle: ONNX graphs, engines, and proof that they agree with PyTorch."""

from engine.backends import switch_off_usage_reports

switch_off_usage_reports()
