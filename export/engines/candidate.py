"""One way to run a model, and the names of the files that it takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from engine.backends import BACKENDS
from engine.bundle import DECODER, ENCODER, Engine
from export.graphs.names import PLAIN, DecoderForm, EncoderForm, file_name

Files = tuple[str, str]
"""Names of the encoder's and the decoder's file."""
IN_GRAPH = ("fp16", "int8")
"""Precisions that stand in the graph itself; the others are a choice of the runtime."""


class Option(NamedTuple):
    """One way to compute: a backend, where, and in which precision."""

    backend: str
    device: str
    precision: str

    def __str__(self) -> str:
        return f"{self.backend} {self.precision} on {self.device}"


@dataclass(frozen=True)
class Candidate:
    """One way to run a model: how it computes, the forms of its graphs, and `split`, as `engine.bundle.Engine` says."""

    backend: str
    device: str
    precision: str
    encoder: EncoderForm
    decoder: DecoderForm
    split: bool

    @property
    def option(self) -> Option:
        """How it computes, apart from the graphs' forms."""
        return Option(self.backend, self.device, self.precision)

    @property
    def symmetric(self) -> bool:
        """Whether its int8 is symmetric about 0: TensorRT reads no other; elsewhere it only costs accuracy."""
        return BACKENDS[self.backend].plan is not None

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
        return _renamed(self.portable, f".{name}.onnx")

    @property
    def files(self) -> Files:
        """What its runtime loads."""
        ending = BACKENDS[self.backend].plan
        return _renamed(self.graphs, ending) if ending else self.graphs

    @property
    def edit(self) -> str | None:
        """Plan of both as one graph, so that an edit is one launch; None for a runtime that joins graphs itself."""
        if BACKENDS[self.backend].plan is None:
            return None
        form = "" if self.encoder == PLAIN else f".{self.encoder}"
        return f"edit{form}{self.files[1].removeprefix(Path(DECODER).stem)}"

    @property
    def engine(self) -> Engine:
        """What the manifest says of it."""
        stages = {}
        if (self.encoder, self.decoder) != (PLAIN, PLAIN):
            stages["rewritten"] = self.portable
        if self.graphs != self.portable:
            stages["reduced"] = self.graphs
        return Engine(*self.files, split=self.split, stages=stages, edit=self.edit)

    def __str__(self) -> str:
        shared = ", batches split over the threads" if self.split else ""
        return f"{self.option}, encoder {self.encoder}, decoder {self.decoder}{shared}"


def _renamed(files: Files, ending: str) -> Files:
    encoder, decoder = (str(Path(file).with_suffix(ending)) for file in files)
    return encoder, decoder
