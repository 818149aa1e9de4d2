"""The server on a GPU, asked over gRPC: its edits beside those of the same engine in this process, and what they take.

    python benchmarks/gpu_serve.py --bundle BUNDLE --json FILE

One client, one request after the other. Exit codes: 0 measured, 1 the server answered otherwise than the engine, 2
unusable input.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from script import require_positive, run, write_json
from serving.figures import markdown
from serving.process import Server
from timing import take_turns

from engine.backends import open_backend
from engine.bundle import Bundle
from engine.client import Client
from engine.errors import ParityError
from export.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What to ask, and how long."""

    bundle: Path
    """Bundle folder, proven on this machine."""
    json: Path
    """File to write; the server's log goes beside it."""
    images: tuple[int, ...] = (1, 8, 32)
    """Images per request."""
    seconds: float = 2.0
    """Time of each measurement, seconds."""


def measure(config: ServeConfig) -> bool:
    """Times edits of one client, a row for each number of images in a request."""
    require_positive(config, "images", "seconds")
    bundle = Bundle.load(config.bundle)
    if not bundle.directions.names:
        raise InputError(f"--bundle {config.bundle}: has no attributes, so that nothing can be edited")
    shape = (max(config.images), bundle.manifest.image_size, bundle.manifest.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    edits = [(bundle.directions.names[0], 1.0)]
    step, backend = bundle.directions.move(edits).step, open_backend(bundle)
    rows = []
    with Server(["-m", "engine", "--bundle", bundle.path.resolve()]) as server, Client(server.target) as client:
        for size in config.images:
            batch = images[:size]
            edited, _ = backend.edit(batch, np.tile(step, (size, 1)))
            difference = np.abs(client.edit(batch, edits).astype(int) - edited).max()
            if difference > 1:
                raise ParityError(f"{size} images: the server's are off by up to {difference} levels")
            taken = take_turns({"": partial(client.edit, batch, edits)}, config.seconds)[""]
            p50, p99 = map(float, np.percentile(taken, [50, 99]) * 1e3)
            rows.append({"images": size, "p50_ms": p50, "p99_ms": p99, "images_per_s": size * len(taken) / sum(taken)})
    config.json.with_suffix(".log").write_text(server.log)
    write_json(config.json, rows)
    print(markdown(rows))
    return True


main = partial(run, ServeConfig, measure, __doc__)

if __name__ == "__main__":
    sys.exit(main())
