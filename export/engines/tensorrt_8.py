"""What TensorRT 8.6 needs that newer ones don't: all of it goes on the day that 8.6 does.

It chooses each layer's precision itself, among those that builder flags allow, and is asked to compute in FP32 what the
graph keeps in FP32: `graphs.fp16` marks those layers by their names. A profile serves one execution context unless a
preview feature shares it.
"""

from typing import Any

from export.graphs.fp16 import KEPT


def allow_precisions(trt: Any, config: Any, network: Any) -> list[str]:
    """Allows the precisions that are in the graph; returns the names of the flags that it sets."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    types = {layer.get_output(index).dtype for layer in layers for index in range(layer.num_outputs)}
    flags = ["FP16"] if trt.DataType.HALF in types else []
    flags += ["INT8"] if any(layer.type == trt.LayerType.QUANTIZE for layer in layers) else []
    kept = [layer for layer in layers if flags and KEPT in layer.name]
    flags += ["PREFER_PRECISION_CONSTRAINTS"] if kept else []
    for name in flags:
        config.set_flag(getattr(trt.BuilderFlag, name))
    for layer in kept:
        layer.precision = trt.DataType.FLOAT
        for index in range(layer.num_outputs):
            layer.set_output_type(index, trt.DataType.FLOAT)
    return flags


def share_profile(trt: Any, config: Any) -> None:
    """Lets several contexts, one for each batch bucket, use the one profile."""
    feature = trt.PreviewFeature.__members__.get("PROFILE_SHARING_0806")
    if feature is not None and not config.get_preview_feature(feature):
        config.set_preview_feature(feature, True)
