"""Names of the forms of encoder and decoder, which `export.graphs.forms` makes, and of their files."""

from pathlib import Path
from typing import Literal, get_args

EncoderForm = Literal["plain", "product"]
DecoderForm = Literal["plain", "tail", "phases"]
PLAIN: Literal["plain"] = "plain"
ENCODER_FORMS: tuple[EncoderForm, ...] = get_args(EncoderForm)
DECODER_FORMS: tuple[DecoderForm, ...] = get_args(DecoderForm)
INT8_ENCODERS: tuple[EncoderForm, ...] = (PLAIN,)
"""Forms of the encoder that can be quantised. OpenVINO 2026.4 crashes on the other one, whose padding and gathering it
would do in int8, and with its product left in float it is slower than this one."""


def file_name(graph: str, form: str) -> str:
    """Name of the file of a graph in a form: encoder.onnx, encoder.product.onnx."""
    return graph if form == PLAIN else f"{Path(graph).stem}.{form}{Path(graph).suffix}"
