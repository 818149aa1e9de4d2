"""The contest that decides what a build runs: candidates measured on this machine, in turns.

Encoders and decoders are measured by themselves, so that every pair of forms is known from few measurements: an
edit is one of each (its arithmetic on latents takes microseconds).
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from engine.arrays import Array
from engine.backends import Options, open_graphs
from engine.bundle import Manifest
from engine.errors import EngineError
from export.engines.candidate import Candidate, Option

K = TypeVar("K")
Part = tuple[Option, bool, str, str]
"""What is timed: how graphs are opened, whether batches are split, "encode" or "decode", and the graph's form."""

ROUNDS = 7
"""Turns of every candidate."""
TURN_SECONDS = 0.01
"""Length of a turn; a call that has begun is finished."""
SPLIT_PENALTY = 0.05
"""How much faster split batches must be: in a server each share takes its turn at Python's interpreter, too."""
RULE = (
    "the smallest product of the times of an edit at batch 1 and at the largest batch, "
    "so that one may be slower by some share only if the other is faster by more; "
    f"split batches must be faster by {100 * SPLIT_PENALTY:g} %"
)


@dataclass(frozen=True)
class Entry:
    """A candidate, and by batch size the ms that it takes to encode and decode."""

    candidate: Candidate
    edit_ms: dict[int, float]

    @property
    def score(self) -> float:
        """What `RULE` compares: smaller is better."""
        penalty = SPLIT_PENALTY if self.candidate.split else 0.0
        return (1 + penalty) * min(self.edit_ms.values()) * max(self.edit_ms.values())

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON types."""
        return {**asdict(self.candidate), "edit_ms": {str(size): round(ms, 4) for size, ms in self.edit_ms.items()}}


def rank(
    candidates: Sequence[Candidate], folder: Path, manifest: Manifest, *, threads: int, say: Callable[[str], None]
) -> list[Entry]:
    """Measures candidates whose files lie in a folder, at batch 1 and at the manifest's largest batch.

    Returns:
        The best one first, without those that their runtime refuses to open; `say` is told why.
    """
    noise, size, max_batch = np.random.default_rng(0), manifest.image_size, manifest.max_batch_size
    batches: dict[str, Array] = {
        "encode": noise.integers(0, 256, (max_batch, size, size, 3), dtype=np.uint8),
        "decode": noise.standard_normal((max_batch, manifest.latent_dim), dtype=np.float32),
    }
    batch_sizes = sorted({1, max_batch})
    calls: dict[Part, Callable[[Array], object]] = {}
    refused: set[tuple[Option, bool]] = set()
    for missing, candidate in product((2, 1), candidates):  # first those that bring both parts: few take less memory
        encode, decode = _parts(candidate)
        if encode[:2] in refused or (encode not in calls) + (decode not in calls) != missing:
            continue
        encoder, decoder = (folder / name for name in candidate.files)
        how = Options(**candidate.option._asdict(), split=candidate.split, max_batch_size=max_batch, threads=threads)
        try:
            engine = open_graphs(encoder, decoder, how)
        except EngineError as error:
            refused.add(encode[:2])
            say(f"{candidate.option} is out: {error}")
            continue
        calls.setdefault(encode, engine.encode)
        calls.setdefault(decode, engine.decode)
    sized = product(calls.items(), batch_sizes)
    ms = _time({(part, size): partial(call, batches[part[2]][:size]) for (part, call), size in sized})
    entries = [
        Entry(candidate, {size: sum(ms[part, size] for part in _parts(candidate)) for size in batch_sizes})
        for candidate in candidates
        if (candidate.option, candidate.split) not in refused
    ]
    return sorted(entries, key=lambda entry: entry.score)


def table(entries: Iterable[Entry]) -> str:
    """The contest as text for a screen."""
    lines = [f"contest by {RULE}"]
    for entry in entries:
        times = "  ".join(f"batch {size}: {ms:8.3f} ms" for size, ms in entry.edit_ms.items())
        lines.append(f"  {times}  {entry.candidate}")
    return "\n".join(lines)


def _parts(candidate: Candidate) -> tuple[Part, Part]:
    opened = candidate.option, candidate.split
    return (*opened, "encode", candidate.encoder), (*opened, "decode", candidate.decoder)


def _time(calls: Mapping[K, Callable[[], object]]) -> dict[K, float]:
    """Least ms of each call, all taking turns: whatever else the machine does only ever adds."""
    least = dict.fromkeys(calls, math.inf)
    turns = product(range(ROUNDS), calls.items())
    for _, (key, call) in tqdm(
        turns, desc="contest", total=ROUNDS * len(calls), unit="turn", leave=False, disable=None
    ):
        call()  # not timed: the one before left its own data in the caches
        end = time.perf_counter() + TURN_SECONDS
        while (start := time.perf_counter()) < end:
            call()
            least[key] = min(least[key], (time.perf_counter() - start) * 1e3)
    return least
