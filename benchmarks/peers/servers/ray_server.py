"""Ray Serve: one replica, batches of up to 32, raw bytes over HTTP."""

import threading

import numpy as np
import ray
from model import MAX_BATCH, PORT, Bytes, Model
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(max_ongoing_requests=128)
class Edit:
    def __init__(self) -> None:
        self._model = Model()

    @serve.batch(max_batch_size=MAX_BATCH)
    async def edit(self, images: list[Bytes]) -> list[Bytes]:
        return [*self._model.edit(np.stack(images))]

    async def __call__(self, request: Request) -> Response:
        edited = await self.edit(self._model.read(await request.body()))
        return Response(edited.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Edit.bind())
    threading.Event().wait()
