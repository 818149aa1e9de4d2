"""The job of `python -m engine.batch` as a Ray Data pipeline: images in any storage that Ray reads, latents to Parquet.

    pip install . "ray[data]"
    python deploy/ray_data.py IMAGES OUT.parquet 10.0.0.1:50051,10.0.0.2:50051

Ray reads, retries and writes; the servers encode. Unlike `engine.batch` it starts from the beginning each time.
"""

import sys
from typing import Any

import numpy as np
import ray

from engine.arrays import Floats
from engine.client import Client, ClientError

_IMAGES_PER_REQUEST = 32
_CLIENTS = 4


class Encode:
    """A client of the servers, one to each of Ray's actors; servers of another bundle than `model` refuse."""

    def __init__(self, target: str, model: str) -> None:
        self._client = Client(target, model=model, priority="background", retry_overload=1000)
        self._none = np.full(self._client.model().latent_dim, np.nan, np.float32)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """From `path` and `bytes` of image files to `path`, `mu` (float32 [D]; NaN without one) and `error`."""
        mu, errors = zip(*self._encode([bytes(file) for file in batch["bytes"]]), strict=True)
        return {"path": batch["path"], "mu": np.stack(mu), "error": np.array(errors, object)}

    def _encode(self, files: list[bytes]) -> list[tuple[Floats, str]]:
        """Of each file `mu` and what is wrong with it; where one is damaged, each is sent alone."""
        try:
            return [(mu, "") for mu in self._client.encode(files).mu]
        except ClientError as error:
            if error.status != "INVALID_ARGUMENT":
                raise
            if len(files) > 1:
                return [one for file in files for one in self._encode([file])]
            return [(self._none, error.message)]


def main(images: str, out: str, servers: str) -> None:
    """Encodes every image under a folder or address, by one or more servers, HOST:PORT with commas between."""
    target = f"ipv4:{servers}" if "," in servers else servers
    with Client(target) as client:
        arguments = (target, client.model().reference)
    files = ray.data.read_binary_files(images, include_paths=True, file_extensions=["jpg", "jpeg", "png", "webp"])
    latents = files.map_batches(
        Encode, fn_constructor_args=arguments, batch_size=_IMAGES_PER_REQUEST, concurrency=_CLIENTS, num_cpus=0.1
    )
    latents.write_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
