"""NVIDIA Triton through PyTriton: one worker of its Python backend, its dynamic batches of up to 32, KServe's gRPC."""

import os
import sysconfig

import numpy as np
from model import MAX_BATCH, PORT, Bytes, Model
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

# Triton's own process for the backend looks for libpython where the loader does.
os.environ["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
model = Model()


@batch
def edit(images: Bytes) -> dict[str, Bytes]:
    return {"edited": model.edit(images)}


if __name__ == "__main__":
    shape = (model.size, model.size, 3)
    config = TritonConfig(grpc_port=PORT, http_port=PORT + 1, metrics_port=PORT + 2)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="edit",
            infer_func=edit,
            inputs=[Tensor(name="images", dtype=np.uint8, shape=shape)],
            outputs=[Tensor(name="edited", dtype=np.uint8, shape=shape)],
            config=ModelConfig(max_batch_size=MAX_BATCH),
        )
        triton.serve()
