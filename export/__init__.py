"""From a run folder to a verified bundle: ONNX graphs, engines, and proof that they agree with PyTorch."""
