"""INT8 graphs: a graph of `export.graphs.trace` with explicit quantisation (Q/DQ), calibrated on images.

NNCF places QuantizeLinear and DequantizeLinear nodes; ONNX Runtime, OpenVINO and TensorRT all read them. Weights are
int8 by output channel, activations by tensor.
"""

import io
import logging
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from engine.arrays import Bytes, Doubles, Floats
from engine.backends import Backend
from engine.backends.base import in_parts
from engine.errors import BackendError
from engine.latents import Directions, Prior
from export.graphs.fp16 import WEIGHTED
from export.graphs.onnx_model import labels_of, session_for, write_model

_BATCH = 32
_REACH = 1.5
"""Strength of the edits that ranges are measured on."""
_LEAKED = 32
"""Most steps of 255 below 0 that are what LeakyReLU leaks."""
_DRAWN, _DRAW_SEED = 256, 3
"""Images to calibrate on where the run's aren't at hand, others than those that a bundle carries."""


@dataclass(frozen=True)
class Calibration:
    """What ranges are measured on."""

    images: Bytes  # uint8 [N, S, S, 3], for the encoder
    latents: Floats  # float32 [M, D], for the decoder

    @classmethod
    def of(cls, model: Backend, images: Bytes, directions: Directions) -> "Calibration":
        """Images and what the decoder is given when it serves them, by the model in FP32.

        That is mu of the images, as many draws from N(0, I), and mu moved along the directions in turn, to both sides.
        Parity is measured on others than these images, uint8 [N, S, S, 3].
        """
        mu, _ = in_parts(model.encode, _BATCH, images)
        latents = [mu, np.random.default_rng(2).standard_normal(mu.shape, dtype=np.float32)]
        moves = [directions.move([(name, sign * _REACH)]) for name in directions.names for sign in (1, -1)]
        latents += [mu[row :: len(moves)] + move.step for row, move in enumerate(moves) if row < len(mu)]
        return cls(images, np.concatenate(latents))

    @classmethod
    def drawn(cls, model: Backend, prior: Prior, directions: Directions) -> "Calibration":
        """As `of`, with images that the model makes of draws from its prior.

        These calibrate as well as the run's do: see the dated reports.
        """
        latents = np.split(prior.draw(_DRAWN, _DRAW_SEED), _DRAWN // _BATCH)
        return cls.of(model, np.concatenate([model.decode(part) for part in latents]), directions)


def require_nncf() -> None:
    """Lets an environment pass that can quantise.

    Raises:
        BackendError: otherwise.
    """
    if find_spec("nncf") is None:
        raise BackendError("INT8 is calibrated with nncf, which is not installed; pip install 'dfc-vae[int8]'")


def write_int8(source: Path, target: Path, calibration: Calibration, *, symmetric: bool) -> None:
    """Writes the INT8 form of an FP32 graph: the same inputs and outputs, and the same bytes each time.

    Every convolution and matrix product is quantised, over the range of all values that were seen: NNCF's default, the
    mean of the images' ranges, cuts off the faces that are unlike the others. Symmetric graphs keep two layers in
    float: the first convolution of the encoder, whose pixels have no sign, so that NNCF would make them uint8, which
    TensorRT does not read; and the last one of the decoder, which needs it most and costs a GPU next to nothing
    (`export.graphs.fp16` makes FP16 of both).

    The biases of the last layers are corrected besides (`_centre`), and on the CPU zero points dropped in front of
    transposed convolutions (`_drop_zero_points`). What other choices cost stands in
    benchmarks/reports/2026-11-24-graph-forms.md.

    Args:
        source: Graph of an encoder (input `images`) or of a decoder (input `latents`), float32 inside.
        target: File to write; its metadata has `precision` "int8" besides.
        calibration: What ranges are measured on.
        symmetric: Whether all ranges are signed and symmetric about 0.

    Raises:
        BackendError: nncf is not installed.
    """
    require_nncf()
    model = onnx.load(source)
    (name,) = [value.name for value in model.graph.input]
    encodes = name == "images"
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    kept = [convolutions[0 if encodes else -1]] if symmetric else []
    # Scaling to [0, 1] is no layer, yet NNCF would round the pixels before it as well.
    kept += [node.name for node in model.graph.node if encodes and node.op_type == "Div"]
    values = calibration.images if encodes else calibration.latents
    quantised = _quantise(model, name, values, kept, symmetric=symmetric)
    if not symmetric:
        _drop_zero_points(quantised.graph)
    _centre(model, quantised, name, values)

    quantised.producer_name, quantised.producer_version = model.producer_name, model.producer_version
    quantised.graph.name = target.stem
    write_model(quantised, {**labels_of(model), "precision": "int8"}, target)


def _quantise(
    model: onnx.ModelProto, name: str, values: Bytes | Floats, kept: list[str], *, symmetric: bool
) -> onnx.ModelProto:
    # NNCF draws bars on stdout and makes torch warn of a GPU's absence. Its reports over the network are switched off
    # in `engine.backends`.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with redirect_stdout(io.StringIO()):
        import nncf  # noqa: PLC0415
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters  # noqa: PLC0415
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet  # noqa: PLC0415

        logging.getLogger("nncf").setLevel(logging.ERROR)  # its own function also silences handlers of others
        ranges = RangeEstimatorParametersSet.MINMAX
        # Of one size: NNCF corrects biases by the mean of the batches' means.
        batches = [{name: part} for part in np.array_split(values, -(-len(values) // _BATCH))]
        quantised: onnx.ModelProto = nncf.quantize(
            model,
            nncf.Dataset(batches),
            subset_size=len(batches),
            preset=nncf.QuantizationPreset.PERFORMANCE if symmetric else nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=kept),
            advanced_parameters=AdvancedQuantizationParameters(activations_range_estimator_params=ranges),
        )
    return quantised


def _drop_zero_points(graph: onnx.GraphProto) -> None:
    """Gives what transposed convolutions read a range that starts at 0, or one about 0 where it has signs.

    OpenVINO computes them in int8 only so, with the activation fused; else in bf16. What LeakyReLU leaves below 0 is
    shorter than a few steps of the range: rounding it to 0 costs nothing that could be measured.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    for layer in graph.node:
        source = made.get(layer.input[0])
        while source is not None and source.op_type == "Reshape":
            source = made.get(source.input[0])
        if layer.op_type != "ConvTranspose" or source is None or source.op_type != "DequantizeLinear":
            continue
        _, scale, zero = source.input
        step, point = (numpy_helper.to_array(tensors[name]) for name in (scale, zero))
        below = int(point) - int(np.iinfo(point.dtype).min)  # steps of the range that lie below 0
        signed = below > _LEAKED
        steps = max(below, 255 - below) / 127 if signed else (255 - below) / 255
        tensors[scale].CopyFrom(numpy_helper.from_array(np.asarray(step * steps, step.dtype), scale))
        tensors[zero].CopyFrom(numpy_helper.from_array(np.zeros_like(point, np.int8 if signed else np.uint8), zero))
    graph.ClearField("value_info")  # of the old types


def _centre(model: onnx.ModelProto, quantised: onnx.ModelProto, name: str, values: Bytes | Floats) -> None:
    """Takes from the biases of the last layers what rounding, in all layers together, adds to their results' means.

    NNCF corrects single layers. A network trained on real faces, on latents that were not calibrated on: the signed
    mean of decoded images goes from -0.99 to -0.04 levels, the worst image from 41.5 to 44.5 dB.
    """
    results = 2 if name == "images" else 1  # mu and log_var, or what becomes pixels
    last = [node.output[0] for node in model.graph.node if node.op_type in WEIGHTED][-results:]
    means, rounded = (_means(each, last, name, values) for each in (model, quantised))
    biases = {node.output[0]: node.input[2] for node in quantised.graph.node if node.output[0] in last}
    tensors = {tensor.name: tensor for tensor in quantised.graph.initializer}
    for output, bias in biases.items():
        corrected = numpy_helper.to_array(tensors[bias]) - (rounded[output] - means[output])
        tensors[bias].CopyFrom(numpy_helper.from_array(corrected.astype(np.float32), bias))


def _means(model: onnx.ModelProto, outputs: list[str], name: str, values: Bytes | Floats) -> dict[str, Doubles]:
    """Mean of each channel of some tensors, float64 [C]."""
    session = session_for(model, outputs)
    results = in_parts(lambda part: session.run(None, {name: part}), _BATCH, values)
    return {
        output: result.mean(axis=(0, *range(2, result.ndim)), dtype=np.float64)
        for output, result in zip(outputs, results, strict=True)
    }
