"""The truth that engines are held against: what a reference answers, and the comparison with it.

Compared are `mu` and `log_var`, encoding the images; `decode`, decoding the truth's mu of the images; `random`,
decoding latents from N(0, I); `sample`, decoding latents from the prior that new faces are drawn from; `edit`,
encoding, moving each image by strength 1 along one direction and decoding, each side from its own mu; and `edit_mu`,
the mu that edits give.

Shapes: N images, D latent dimensions, S image size.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from engine.arrays import Array, Bytes, Floats
from engine.backends import Backend
from engine.backends.base import in_parts
from engine.errors import BundleError, ParityError
from engine.latents import Directions, Prior
from engine.process.files import reading
from engine.proof.figures import ImageError, LatentError, Stage, Tolerances

Rows = npt.NDArray[np.intp]

LATENTS, IMAGES = ("mu", "log_var", "edit_mu"), ("decode", "random", "sample", "edit")
"""The results, by kind."""
_METADATA = "proof"
_REFERENCE_BATCH = 32
_NOISE_SEED, _SAMPLE_SEED = 0, 1


@dataclass(frozen=True)
class Truth:
    """A reference's answers."""

    what: str  # name of the reference, for reports
    images: Bytes  # uint8 [N, S, S, 3], N at least 2
    steps: Floats  # what edits add to mu, by image, float32 [N, D]
    edits: tuple[str, ...]  # what these are called, by image: "Smiling +1"
    latents: dict[str, Floats]  # float32 [N, D] by what is decoded of them: `random` and `sample`
    answers: dict[str, Array]  # by result, float32 [N, D] or uint8 [N, S, S, 3]
    model_sha256: str = ""  # of the reference's weights, hex; empty where it isn't known

    @classmethod
    def of(
        cls,
        what: str,
        reference: Backend,
        images: Bytes,
        directions: Directions,
        prior: Prior,
        *,
        model_sha256: str = "",
    ) -> "Truth":
        """Asks a reference of that name about images, uint8 [N, S, S, 3], N at least 2.

        Edits go along the directions in turn, first to one side and then to the other; without any, they only
        reconstruct. New faces are drawn from the prior. `model_sha256` is that of the reference's weights.

        Raises:
            ParityError: its latents are not finite, so that there is nothing to measure against.
        """
        count = len(images)
        noise = np.random.default_rng(_NOISE_SEED).standard_normal((count, directions.latent_dim), dtype=np.float32)
        latents = {"random": noise, "sample": prior.draw(count, _SAMPLE_SEED)}
        steps, edits = _edits(directions, count)
        mu, log_var = in_parts(reference.encode, _REFERENCE_BATCH, images)
        _require_finite(f"{what}'s own", mu, "the training has diverged: train again with a smaller --lr")
        answers = {"mu": mu, "log_var": log_var, "edit_mu": mu}
        for name, values in {"decode": mu, **latents, "edit": mu + steps}.items():
            (answers[name],) = in_parts(lambda part: [reference.decode(part)], _REFERENCE_BATCH, values)
        return cls(what, images, steps, edits, latents, answers, model_sha256)

    def compare(
        self, engine: Backend, what: str, tolerances: Tolerances, max_batch: int, stage: str = "engine"
    ) -> Stage:
        """Measures an engine in batches of every kind, one after the other and, where it overlaps them, at once.

        `what` and `tolerances` are kept for the verdict; its largest batch has `max_batch` images.

        Raises:
            ParityError: its mu is not finite; names the `stage`.
        """
        calls = [(rows, "") for rows in batches(len(self.images), batch_sizes(max_batch))]
        found = [self._ask(engine, rows) for rows, _ in calls]
        if at_once := engine.overlaps:
            # The sizes that matter under load.
            beside = [rows for rows in batches(len(self.images), batch_sizes(max_batch)[-3:]) for _ in range(2)]
            calls += [(rows, " beside another one") for rows in beside]
            with ThreadPoolExecutor(1 + at_once) as pool:
                found += pool.map(partial(self._ask, engine), beside)
        merged = {name: np.concatenate([part[name] for part in found]) for name in (*LATENTS, *IMAGES)}
        names = [
            f"image {row} ({self.edits[row]}) in a batch of {len(part)}{how}" for part, how in calls for row in part
        ]
        _require_finite(f"stage {stage}: the {what}'s", merged["mu"], f"{self.what}'s is: the engine is broken")
        rows = np.concatenate([rows for rows, _ in calls])
        return Stage(
            what=what,
            tolerances=tolerances,
            latents={name: LatentError.between(merged[name], self.answers[name][rows], names) for name in LATENTS},
            images={name: ImageError.between(merged[name], self.answers[name][rows], names) for name in IMAGES},
        )

    def _ask(self, engine: Backend, rows: Rows) -> dict[str, Array]:
        """All calls of an engine about some rows: its results by name."""
        mu, log_var = engine.encode(self.images[rows])
        edited, edit_mu = engine.edit(self.images[rows], self.steps[rows])
        latents = {"decode": self.answers["mu"], **self.latents}
        decoded = {name: engine.decode(values[rows]) for name, values in latents.items()}
        return {"mu": mu, "log_var": log_var, "edit_mu": edit_mu, "edit": edited, **decoded}

    def save(self, path: Path) -> None:
        """Writes a safetensors file: the inputs under their names, the answers under `answer.` and theirs.

        `edit_mu`, which is mu, is left out.
        """
        answers = {f"answer.{name}": values for name, values in self.answers.items() if name != "edit_mu"}
        tensors = {"images": self.images, "steps": self.steps, **self.latents, **answers}
        # As one text: safetensors writes several in any order, and the same run is to give the same bytes.
        text = json.dumps({"what": self.what, "edits": self.edits, "model_sha256": self.model_sha256})
        contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
        path.write_bytes(save(contiguous, {_METADATA: text}))

    @classmethod
    def load(cls, path: Path, image_size: int, latent_dim: int) -> "Truth":
        """Reads what `save` wrote, of images of that side S and latents of that dimension D.

        Raises:
            BundleError: it is missing, damaged or no proof, or of graphs of other sizes; says which.
        """
        with reading(path, "a proof of a bundle", BundleError), safe_open(path, "np") as file:
            metadata = json.loads((file.metadata() or {})[_METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            what, model_sha256 = str(metadata["what"]), str(metadata["model_sha256"])
            edits = tuple(map(str, metadata["edits"]))
            images, steps = tensors["images"], tensors["steps"]
            latents = {name: tensors[name] for name in ("random", "sample")}
            answers = {name: tensors[f"answer.{name}"] for name in (*LATENTS, *IMAGES) if name != "edit_mu"}
        count = len(edits)
        floats = {"steps": steps, **latents, "mu": answers["mu"], "log_var": answers["log_var"]}
        pixels = {"images": images, **{name: answers[name] for name in IMAGES}}
        for name, values, shape, dtype in (
            *((name, values, (count, latent_dim), np.float32) for name, values in floats.items()),
            *((name, values, (count, image_size, image_size, 3), np.uint8) for name, values in pixels.items()),
        ):
            if values.shape != shape or values.dtype != dtype or count < 2:
                raise BundleError(
                    f"{path} doesn't fit the graphs: its {name} is {values.dtype} {list(values.shape)}, for {count} "
                    f"edits, image_size {image_size} and latent_dim {latent_dim} it must be {np.dtype(dtype)} "
                    f"{list(shape)}"
                )
        return cls(what, images, steps, edits, latents, {**answers, "edit_mu": answers["mu"]}, model_sha256)


def batch_sizes(largest: int) -> list[int]:
    """1, 2, 4 ... and the largest, its half, and two that nothing is compiled for."""
    powers = {2**power for power in range(largest.bit_length())}
    return sorted({size for size in {*powers, 3, -(-largest // 2), largest - 1, largest} if 1 <= size <= largest})


def batches(count: int, sizes: Sequence[int]) -> Iterator[Rows]:
    """Rows 0 to `count` in turn, in one batch of each size and then in the largest, until all have been in one."""
    used = sum(sizes)
    more = range(used, count, sizes[-1])
    bounds = [0, *np.cumsum(sizes).tolist(), *more[1:], *([count] if more else [])]
    for start, stop in pairwise(bounds):
        yield np.arange(start, stop) % count


def _edits(directions: Directions, count: int) -> tuple[Floats, tuple[str, ...]]:
    """Step float32 [N, D] and name by image: each attribute in turn to the one side, then each to the other."""
    if not directions.names:
        return np.zeros((count, directions.latent_dim), np.float32), ("no edit",) * count
    both = np.concatenate([directions.vectors, -directions.vectors])
    names = [f"{name} {sign}1" for sign in "+-" for name in directions.names]
    order = np.arange(count) % len(names)
    return both[order], tuple(names[edit] for edit in order)


def _require_finite(whose: str, mu: Floats, mend: str) -> None:
    if not np.isfinite(mu).all():
        raise ParityError(f"{whose} mu of the images has values that are not finite; {mend}")
