"""mosec: one worker, batches of up to 32, raw bytes in and out."""

import numpy as np
from model import MAX_BATCH, Bytes, Model
from mosec import Server, Worker


class Edit(Worker):
    def __init__(self) -> None:
        self._model = Model()

    def deserialize(self, data: bytes) -> Bytes:
        return self._model.read(data)

    def forward(self, data: list[Bytes]) -> list[Bytes]:
        return [*self._model.edit(np.stack(data))]

    def serialize(self, data: Bytes) -> bytes:
        return data.tobytes()


if __name__ == "__main__":
    server = Server()
    server.append_worker(Edit, num=1, max_batch_size=MAX_BATCH)
    server.run()
