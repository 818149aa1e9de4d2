"""BentoML: one worker, its adaptive batches of up to 32, images as base64 in JSON."""

import base64

import bentoml
import numpy as np
from model import MAX_BATCH, Model


@bentoml.service(workers=1)
class Edit:
    def __init__(self) -> None:
        self._model = Model()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH)
    def edit(self, images: list[str]) -> list[str]:
        edited = self._model.edit(np.stack([self._model.read(base64.b64decode(image)) for image in images]))
        return [base64.b64encode(image.tobytes()).decode() for image in edited]
