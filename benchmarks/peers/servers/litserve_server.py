"""LitServe: one worker, batches of up to 32, images as base64 in JSON, as its examples have them."""

import base64
from typing import Any

import litserve
import numpy as np
from model import MAX_BATCH, PORT, Bytes, Model


class Edit(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._model = Model()

    def decode_request(self, request: dict[str, str]) -> Bytes:
        return self._model.read(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Bytes]) -> Bytes:
        return np.stack(inputs)

    def predict(self, x: Bytes) -> Bytes:
        return self._model.edit(x)

    def unbatch(self, output: Bytes) -> list[Bytes]:
        return [*output]

    def encode_response(self, output: Bytes) -> dict[str, Any]:
        return {"image": base64.b64encode(output.tobytes()).decode()}


if __name__ == "__main__":
    api = Edit(max_batch_size=MAX_BATCH, batch_timeout=0.005)
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning"
    )
