"""From a run folder to a verified bundle: ONNX graphs, engines, and proof that they agree with PyTorch."""

import engine.backends  # noqa: F401 - switches off what runtimes tell of their use, before anything imports one
