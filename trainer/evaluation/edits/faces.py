"""Held-out faces that are edited, and how an image classifier sees them before and after.

Edits are made as the server makes them. The classifier never sees a latent; it compares each face's unedited
reconstruction with the edited one.

Shapes: N faces, D latent_dim, A attributes that the classifier judges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.classifier import Classifier
from trainer.evaluation.edits.quality import EditQuality, Logits, quality
from trainer.evaluation.encoded_run import EncodedRun, Floats

SIDES = {"adding": 1, "removing": -1}  # what can be done with an attribute, and the sign of its strength
MAX_EDITED = 500  # faces a direction at most that edits are judged on


def preferred(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """Those of the wanted attributes that are known; where there is none, as many of the first known ones."""
    return [name for name in wanted if name in known] or list(known[: len(wanted)])


@dataclass(frozen=True)
class EditedFaces:
    """Faces of one split, and how the judge sees them before and after edits."""

    encoded: EncodedRun  # whose decoder draws them
    judge: Classifier  # sees them
    mu: Floats  # (N, D) their posterior means
    labels: NDArray[np.bool_]  # (N, A) what they have
    before: Logits  # (N, A) logits of their unedited reconstructions

    @classmethod
    def of(cls, encoded: EncodedRun, judge: Classifier, split: Literal["test", "val"]) -> "EditedFaces":
        """Has a split's unedited faces judged; val is for choices that must not see the test split."""
        mu = encoded.mu if split == "test" else encoded.val_mu
        labels = encoded.data.index.labels[encoded.data.rows(split)]
        return cls(encoded, judge, mu, labels, judge.logits(encoded.decode(mu)))

    @property
    def names(self) -> list[str]:
        """The attributes that can be edited and judged."""
        return [name for name in self.encoded.directions.names if name in self.judge.attributes]

    def lacking(self, attribute: str, strength: float, limit: int) -> NDArray[np.int64]:
        """The first `limit` faces whose label lacks what an edit adds, or has what it removes."""
        has = self.labels[:, self.judge.attributes.index(attribute)]
        return np.flatnonzero(has != (strength > 0))[:limit]

    def after(
        self, faces: NDArray[np.int64], target: str | Floats, strength: float, keep: Sequence[str] = ()
    ) -> Logits:
        """Logits (n, A) of some of the faces (n,), edited as by `EncodedRun.edit`."""
        return self.judge.logits(self.encoded.edit(self.mu[faces], target, strength, keep))

    def quality(self, faces: NDArray[np.int64], attribute: str, strength: float, after: Logits) -> EditQuality:
        """What an edit of some of the faces flipped and kept."""
        return quality(self.judge.attributes, attribute, strength, self.before[faces], after)
