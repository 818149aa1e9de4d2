"""A model as ONNX: traced, in exact forms, in lower precisions, and both halves as one."""
