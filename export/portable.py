"""The graphs of candidates in FP32, traced from a run's model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.candidate import Candidate
from export.graphs import write_decoder, write_encoder
from export.names import DECODER_FORMS, ENCODER_FORMS, PLAIN
from export.run import Run


def write_portable(run: Run, candidates: Sequence[Candidate], folder: Path, *, all_forms: bool = False) -> None:
    """Writes the portable graphs and those of all forms that candidates have, or of all that there are."""
    for encoder in ENCODER_FORMS:
        if all_forms or encoder in {PLAIN, *(candidate.encoder for candidate in candidates)}:
            write_encoder(run.model, encoder, folder, run.model_sha256)
    for decoder in DECODER_FORMS:
        if all_forms or decoder in {PLAIN, *(candidate.decoder for candidate in candidates)}:
            write_decoder(run.model, decoder, folder, run.model_sha256)
