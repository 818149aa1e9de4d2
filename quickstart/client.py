"""The quickstart's client: a process of its own that knows the server's address, image files, and nothing of torch."""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from engine.arrays import Bytes
from engine.client import Client, ClientError

STRIP_STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
NUM_STRIPS = 8
REQUEST_IMAGES = 32


@dataclass(frozen=True)
class Job:
    """One edit of many faces, as the work order lists it."""

    attribute: str  # what to change
    strength: float  # in lengths of the mean difference; negative removes it
    files: list[str]  # the image files

    @property
    def name(self) -> str:
        """Name of the job's arrays and figures."""
        return f"{'adding' if self.strength > 0 else 'removing'}_{self.attribute}"

    @property
    def strip(self) -> list[float]:
        """The strengths that the first faces are shown at."""
        return [math.copysign(strength, self.strength) for strength in STRIP_STRENGTHS]


def run(client: Client, job: Job) -> dict[str, Bytes]:
    """Sends the faces of a job to the server to be edited.

    Returns:
        `before` (unedited reconstructions) and `after`, each (N, S, S, 3) uint8, and `strips`
        (faces, strengths, S, S, 3): the first faces at every strength of `Job.strip`.
    """
    before, after = [], []
    for start in range(0, len(job.files), REQUEST_IMAGES):
        files = [Path(file).read_bytes() for file in job.files[start : start + REQUEST_IMAGES]]
        before.append(client.decode(client.encode(files).mu))
        after.append(client.edit(files, {job.attribute: job.strength}))
    latents = client.encode([Path(file).read_bytes() for file in job.files[:NUM_STRIPS]]).mu
    strips = [client.edit(latents, {job.attribute: strength}) for strength in job.strip]
    return {"before": np.concatenate(before), "after": np.concatenate(after), "strips": np.stack(strips, axis=1)}


def main(target: str, order: Path, out: Path) -> int:
    """Sends faces to a server to be edited, and keeps what comes back.

    Args:
        target: HOST:PORT of the server.
        order: JSON list of jobs: attribute, strength, files.
        out: npz file to write: `NAME/before`, `NAME/after` and `NAME/strips` of every job.
    """
    arrays: dict[str, Bytes] = {}
    try:
        jobs = [Job(**job) for job in json.loads(order.read_text())]
        with Client(target) as client:
            for job in tqdm(jobs, "editing over gRPC", unit="job", disable=None):
                arrays |= {f"{job.name}/{key}": value for key, value in run(client, job).items()}
    except (ClientError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    np.savez(out, **arrays)  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m quickstart.client"))
