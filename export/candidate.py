"""One way to run a model, and the names of the files that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.backends import OF_PLANS
from engine.bundle import DECODER, ENCODER, Engine
from export.names import PLAIN, DecoderForm, EncoderForm, file_name

Files = tuple[str, str]
"""Names of the encoder's and the decoder's file."""
IN_GRAPH = ("fp16", "int8")
"""Precisions that stand in the graph itself; the others are a choice of the runtime."""


@dataclass(frozen=True)
class Candidate:
    """One way to run a model.

    Attributes:
        backend: Runtime.
        precision: Its arithmetic.
        encoder: Form of the encoder.
        decoder: Form of the decoder.
        split: As `engine.bundle.Engine` says.
    """

    backend: str
    precision: str
    encoder: EncoderForm
    decoder: DecoderForm
    split: bool

    @property
    def symmetric(self) -> bool:
        """Whether its int8 is symmetric about 0: TensorRT reads no other; elsewhere it only costs accuracy."""
        return self.backend in OF_PLANS

    @property
    def portable(self) -> Files:
        """Its forms in FP32."""
        return file_name(ENCODER, self.encoder), file_name(DECODER, self.decoder)

    @property
    def graphs(self) -> Files:
        """Its forms in its precision, as ONNX."""
        if self.precision not in IN_GRAPH:
            return self.portable
        name = "int8-symmetric" if self.precision == "int8" and self.symmetric else self.precision
        encoder, decoder = (f"{Path(graph).stem}.{name}.onnx" for graph in self.portable)
        return encoder, decoder

    @property
    def files(self) -> Files:
        """What its runtime loads."""
        if self.backend not in OF_PLANS:
            return self.graphs
        ending = ".plan" if self.backend == "tensorrt" else ".rtx.plan"
        encoder, decoder = (str(Path(graph).with_suffix(ending)) for graph in self.graphs)
        return encoder, decoder

    @property
    def engine(self) -> Engine:
        """What the manifest says of it."""
        stages = {}
        if (self.encoder, self.decoder) != (PLAIN, PLAIN):
            stages["rewritten"] = list(self.portable)
        if self.graphs != self.portable:
            stages["reduced"] = list(self.graphs)
        return Engine(*self.files, split=self.split, stages=stages)

    def __str__(self) -> str:
        shared = ", batches split over the threads" if self.split else ""
        return f"{self.backend} {self.precision}, encoder {self.encoder}, decoder {self.decoder}{shared}"
