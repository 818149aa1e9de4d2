"""The server on a GPU, asked over gRPC: its edits beside those of the same engine in this process, and what they take.

    python benchmarks/gpu_serve.py --bundle BUNDLE --json FILE

One client, one request after the other. Exit codes: 0 measured, 1 the server answered otherwise than the engine, 2
unusable input.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from serving.process import Server
from timing import take_turns

from engine.backends import open_backend
from engine.bundle import Bundle
from engine.client import Client
from engine.errors import EngineError
from export.errors import InputError


def measure(bundle: Bundle, sizes: Sequence[int], seconds: float, log: Path) -> list[dict[str, float]]:
    """Times edits of one client, a row for each number of images in a request."""
    manifest, directions = bundle.manifest, bundle.directions
    shape = (max(sizes), manifest.image_size, manifest.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    name = directions.names[0]
    backend = open_backend(bundle)
    step = directions.move([(name, 1.0)]).step
    rows = []
    with Server(["-m", "engine", "--bundle", bundle.path], log=log) as server, Client(server.target) as client:
        for size in sizes:
            batch, steps = images[:size], np.tile(step, (size, 1))
            answered = client.edit(batch, [(name, 1.0)])
            difference = np.abs(answered.astype(int) - backend.edit(batch, steps)[0])
            assert difference.max() <= 1, f"{size} images: the server's are off by up to {difference.max()} levels"
            taken = take_turns({"": partial(client.edit, batch, [(name, 1.0)])}, seconds)[""]
            p50, p99 = np.percentile(taken, [50, 99]) * 1e3
            rate = size * len(taken) / sum(taken)
            rows.append({"images": size, "p50_ms": float(p50), "p99_ms": float(p99), "images_per_s": rate})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    # argparse, as TensorRT's Python may have nothing better.
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle folder, proven on this machine")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 8, 32], help="images per request")
    parser.add_argument("--seconds", type=float, default=2.0, help="time of each measurement, seconds")
    parser.add_argument("--json", type=Path, required=True, help="file to write; the server's log goes beside it")
    options = parser.parse_args(arguments)
    try:
        bundle = Bundle.load(options.bundle)
        if not bundle.directions.names:
            raise InputError(f"--bundle {options.bundle}: has no attributes, so that nothing can be edited")
        rows = measure(bundle, options.images, options.seconds, options.json.with_suffix(".log"))
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    except AssertionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (EngineError, InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for row in rows:
        print(f"{row['images']:>4} images: p50 {row['p50_ms']:.3f} ms, p99 {row['p99_ms']:.3f} ms, ", end="")
        print(f"{row['images_per_s']:,.0f} images/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
