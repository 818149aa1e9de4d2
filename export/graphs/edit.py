"""The edit as one graph: encode, move in latent space, decode.

It is for runtimes on a device, where the latents need no trip to the host and back. By strengths it is complete in
itself, for Triton; by steps it is what this engine asks for, which knows the arithmetic of directions itself.

Shapes: N batch (dynamic), S image_size, D latent_dim, A attributes in the order of the directions' rows.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from engine.latents import Directions
from export.graphs.onnx_model import labels_of, write_model

_FROM_ENCODER, _FROM_MOVE, _FROM_DECODER = "encode/", "move/", "decode/"


def write_edit(encoder: Path, decoder: Path, directions: Directions, target: Path) -> None:
    """Writes one graph: `images` uint8 [N, S, S, 3] and `strengths` float32 [N, A] to `edited` uint8 [N, S, S, 3].

    Each image moves by its own strengths; with all of them 0 it is reconstructed. The attributes' names are in the
    file's metadata, under `attributes`, as JSON. The ONNX graphs of encoder and decoder may have any form and
    precision.
    """
    parts = onnx.load(encoder), onnx.load(decoder)
    graph = _join(parts, _move_as(directions, parts[0]), [])
    _finish(graph, parts[0], {"attributes": json.dumps(directions.names)}, target)


def write_edit_by_steps(encoder: Path, decoder: Path, target: Path) -> None:
    """Writes one graph: `images` uint8 [N, S, S, 3] and `steps` float32 [N, D] to `edited` uint8 [N, S, S, 3] and `mu`.

    What is decoded is mu + steps; `mu` float32 [N, D] is that of the images. Otherwise as `write_edit`.
    """
    parts = onnx.load(encoder), onnx.load(decoder)
    width = parts[1].graph.input[0].type.tensor_type.shape.dim[1].dim_value
    nodes = [helper.make_node("Add", ["mu", "steps"], ["latents"], name="add")]
    move = helper.make_graph(
        nodes, "move", [_floats("mu", width), _floats("steps", width)], [_floats("latents", width)]
    )
    _finish(_join(parts, _model(move, parts[0]), ["mu"]), parts[0], {}, target)


def write_move(encoder: Path, directions: Directions, target: Path) -> None:
    """Writes the arithmetic alone: `mu` float32 [N, D] and `strengths` float32 [N, A] to `latents` float32 [N, D].

    Opset and labels are those of the encoder's ONNX graph, whose `mu` it takes.
    """
    like = onnx.load(encoder)
    _finish(_move_as(directions, like), like, {"attributes": json.dumps(directions.names)}, target)


def _join(
    parts: tuple[onnx.ModelProto, onnx.ModelProto], move: onnx.ModelProto, others: Sequence[str]
) -> onnx.ModelProto:
    """Encoder, move and decoder in a row, to `edited` and to `others` of the encoder's outputs."""
    # The same names may occur in all, for layers and their weights.
    first = compose.add_prefix(parts[0], _FROM_ENCODER, rename_inputs=False, rename_outputs=False)
    second = compose.add_prefix(move, _FROM_MOVE, rename_inputs=False)
    third = compose.add_prefix(parts[1], _FROM_DECODER)
    latents, edited = f"{_FROM_MOVE}latents", f"{_FROM_DECODER}images"
    graph = compose.merge_models(first, second, io_map=[("mu", "mu")], outputs=[latents, *others])
    io_map = [(latents, f"{_FROM_DECODER}latents")]
    graph = compose.merge_models(graph, third, io_map=io_map, outputs=[edited, *others], name="edit")
    _rename(graph.graph, edited, "edited")
    graph.graph.ClearField("value_info")
    return graph


def _move_as(directions: Directions, like: onnx.ModelProto) -> onnx.ModelProto:
    """The arithmetic as a graph, in the opset of another one."""
    vectors = np.ascontiguousarray(directions.vectors)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["strengths", "directions"], ["step"], name="scale"),
            helper.make_node("Add", ["mu", "step"], ["latents"], name="add"),
        ],
        "move",
        [_floats("mu", vectors.shape[1]), _floats("strengths", len(vectors))],
        [_floats("latents", vectors.shape[1])],
        [numpy_helper.from_array(vectors, "directions")],
    )
    return _model(graph, like)


def _model(graph: onnx.GraphProto, like: onnx.ModelProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=like.opset_import, ir_version=like.ir_version)


def _floats(name: str, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Renames a tensor that is an output of the graph."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    for value in graph.output:
        value.name = new if value.name == old else value.name


def _finish(graph: onnx.ModelProto, like: onnx.ModelProto, labels: Mapping[str, str], target: Path) -> None:
    """Labels a graph as another one is, and with more, and writes it."""
    graph.producer_name, graph.producer_version = like.producer_name, like.producer_version
    versions = {each.domain: each.version for each in graph.opset_import}  # each of them once
    graph.ClearField("opset_import")
    graph.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    write_model(graph, {**labels_of(like), **labels}, target)
