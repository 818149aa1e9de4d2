"""The contest that decides what a build runs: candidates measured on this machine, in turns.

Encoders and decoders are measured by themselves, so that every pair of forms is known from few measurements: an
edit is one of each (its arithmetic on latents takes microseconds).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from engine.backends import Backend, open_graphs
from engine.errors import EngineError
from export.engines.candidate import Candidate
from export.graphs.names import DecoderForm, EncoderForm

ROUNDS = 7
"""Turns of every candidate."""
TURN_SECONDS = 0.01
"""Length of a turn; a call that has begun is finished."""
RULE = (
    "the smallest product of the times of an edit at batch 1 and at the largest batch, "
    "so that one may be slower by some share only if the other is faster by more"
)


@dataclass(frozen=True)
class Entry:
    """A candidate and its times.

    Attributes:
        candidate: The candidate.
        edit_ms: Time of an edit in ms by batch size: encoding and decoding.
    """

    candidate: Candidate
    edit_ms: dict[int, float]

    @property
    def score(self) -> float:
        """What `RULE` compares: smaller is better."""
        return min(self.edit_ms.values()) * max(self.edit_ms.values())

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON types."""
        return {**asdict(self.candidate), "edit_ms": {str(size): round(ms, 4) for size, ms in self.edit_ms.items()}}


class Sizes(Protocol):
    """What has the sizes of a model: its configuration, or a manifest."""

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""

    @property
    def latent_dim(self) -> int:
        """Latent dimensions."""


def rank(
    candidates: Sequence[Candidate],
    folder: Path,
    sizes: Sizes,
    *,
    max_batch: int,
    threads: int,
    say: Callable[[str], None],
) -> list[Entry]:
    """Measures candidates.

    Args:
        candidates: Who takes part.
        folder: Where their files lie.
        sizes: The model's.
        max_batch: The larger batch size of the contest, images.
        threads: Compute threads of each.
        say: Takes why some are out.

    Returns:
        The best one first, without those that their runtime refuses to open.
    """
    noise = np.random.default_rng(0)
    images = noise.integers(0, 256, (max_batch, sizes.image_size, sizes.image_size, 3), dtype=np.uint8)
    latents = noise.standard_normal((max_batch, sizes.latent_dim), dtype=np.float32)
    batch_sizes = sorted({1, max_batch})

    calls: dict[_Call, Callable[[], object]] = {}
    refused: set[_Group] = set()
    for group, (encoders, decoders) in _groups(candidates).items():
        try:
            engines = _open(folder, group, encoders, decoders, max_batch=max_batch, threads=threads)
        except EngineError as error:
            refused.add(group)
            say(f"{group.backend} {group.precision} on {group.device} is out: {error}")
            continue
        for size in batch_sizes:
            for encoder, engine in zip(encoders, engines, strict=False):
                calls[_Call(group, "encode", encoder, size)] = partial(engine.encode, images[:size])
            for decoder, engine in zip(decoders, engines, strict=False):
                calls[_Call(group, "decode", decoder, size)] = partial(engine.decode, latents[:size])
    ms = _time(calls)

    def edit_ms(candidate: Candidate, size: int) -> float:
        group = _group(candidate)
        encode = _Call(group, "encode", candidate.encoder, size)
        return ms[encode] + ms[_Call(group, "decode", candidate.decoder, size)]

    left = [candidate for candidate in candidates if _group(candidate) not in refused]
    entries = [Entry(who, {size: edit_ms(who, size) for size in batch_sizes}) for who in left]
    return sorted(entries, key=lambda entry: entry.score)


def table(entries: Iterable[Entry]) -> str:
    """The contest as text for a screen."""
    lines = [f"contest by {RULE}"]
    for entry in entries:
        times = "  ".join(f"batch {size}: {ms:8.3f} ms" for size, ms in entry.edit_ms.items())
        lines.append(f"  {times}  {entry.candidate}")
    return "\n".join(lines)


class _Group(NamedTuple):
    """What decides how graphs are opened."""

    backend: str
    device: str
    precision: str
    split: bool


class _Call(NamedTuple):
    """One thing that is timed: a form of one half at a batch size."""

    group: _Group
    half: str
    form: str
    batch_size: int


def _group(candidate: Candidate) -> _Group:
    return _Group(candidate.backend, candidate.device, candidate.precision, candidate.split)


def _groups(candidates: Iterable[Candidate]) -> dict[_Group, tuple[list[EncoderForm], list[DecoderForm]]]:
    """The forms that take part, by the way they are opened."""
    groups: dict[_Group, tuple[list[EncoderForm], list[DecoderForm]]] = {}
    for candidate in candidates:
        encoders, decoders = groups.setdefault(_group(candidate), ([], []))
        if candidate.encoder not in encoders:
            encoders.append(candidate.encoder)
        if candidate.decoder not in decoders:
            decoders.append(candidate.decoder)
    return groups


def _open(
    folder: Path,
    group: _Group,
    encoders: list[EncoderForm],
    decoders: list[DecoderForm],
    *,
    max_batch: int,
    threads: int,
) -> list[Backend]:
    """As few engines as have all forms: the i-th has the i-th form of each, or the last where there are fewer."""
    backend, device, precision, split = group
    engines = []
    for index in range(max(len(encoders), len(decoders))):
        forms = encoders[min(index, len(encoders) - 1)], decoders[min(index, len(decoders) - 1)]
        files = Candidate(backend, device, precision, *forms, split).files
        encoder, decoder = (folder / name for name in files)
        engine = open_graphs(
            backend, precision, encoder, decoder, max_batch, device=device, split=split, threads=threads
        )
        engines.append(engine)
    return engines


def _time(calls: dict[_Call, Callable[[], object]]) -> dict[_Call, float]:
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
