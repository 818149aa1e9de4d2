"""How well attributes can be read off mu by a linear model (paper, section 4.4).

Shapes: N train images, M test images, D latent_dim, A attributes.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from trainer.artifacts import linear_svm
from trainer.evaluation.encoded_run import Floats
from trainer.evaluation.skipped import SkippedError

SVM_C = 0.01
"""Weight of the SVM's errors. On 9,000 real faces everything from 1e-3 to 1 gave the same accuracy on the val split to
0.2 points, 0.01 the best; on more faces it matters less."""
NO_ATTRIBUTES = "needs attributes, and this data set has none; use one in CelebA's layout"


class Split(NamedTuple):
    """Posterior means, and which image has which attribute."""

    mu: Floats  # (N, D)
    labels: NDArray[np.bool_]  # (N, A)


def svm(train: Split, test: Split) -> NDArray[np.float64]:
    """A linear SVM for each attribute, as in the paper: on mu, each dimension brought to mean 0 and variance 1.

    In `train` each attribute must occur and be absent. Returns signed distances of `test` from the boundaries, (M, A),
    above 0 where an attribute is predicted.
    """
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415  (start-up: seconds)

    scaler = StandardScaler().fit(train.mu)
    inputs, test_inputs = (scaler.transform(split.mu.astype(np.float64)) for split in (train, test))
    columns = []
    for labels in tqdm(train.labels.T, "linear SVMs", unit="attribute", delay=3, leave=False, disable=None):
        w, b = linear_svm.fit(inputs, labels, SVM_C)
        columns.append(test_inputs @ w + b)
    return np.stack(columns, axis=1)


def mean_of(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None if none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def balanced_accuracy(predicted: NDArray[np.bool_], labels: NDArray[np.bool_]) -> list[float | None]:
    """Mean of the shares of right predictions among images with and without each attribute; None if one is empty."""
    return [
        float(right[has].mean() + right[~has].mean()) / 2 if has.any() and not has.all() else None
        for has, right in zip(labels.T, (predicted == labels).T, strict=True)
    ]


def average_precision(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> list[float | None]:
    """Area under each attribute's curve of precision over recall: how well its scores (M, A) rank images that have it.

    Unlike accuracy it does not hang on the threshold, and always predicting the majority gains nothing; scores without
    knowledge reach the share of images that have the attribute. None where none has it or all have.
    """
    from sklearn.metrics import average_precision_score  # noqa: PLC0415  (start-up: seconds)

    return [
        float(average_precision_score(has, score)) if has.any() and not has.all() else None
        for has, score in zip(labels.T, scores.T, strict=True)
    ]


def measure(attributes: tuple[str, ...], train: Split, test: Split) -> dict[str, Any]:
    """Accuracies for the A attributes on the test split, beside those of always predicting its more frequent side.

    Returns:
        `method`, `images` by split; `accuracy_mean`, `balanced_accuracy_mean`, `average_precision_mean` and
        `majority_mean` over attributes; `accuracy`, `balanced_accuracy` and `average_precision` (these two null where
        test images are all of one side) and `majority` by attribute; `left_out`: attributes that always or never occur
        in the train split, which are in none of these.

    Raises:
        SkippedError: there is no attribute to predict.
    """
    if not attributes:
        raise SkippedError(NO_ATTRIBUTES)
    usable = np.logical_xor(train.labels.any(0), train.labels.all(0))
    if not usable.any():
        raise SkippedError("needs an attribute that some training images have and others do not; there is none")
    names = [name for name, use in zip(attributes, usable, strict=True) if use]
    train, test = (Split(split.mu, split.labels[:, usable]) for split in (train, test))
    scores, share = svm(train, test), test.labels.mean(0)
    predicted = scores > 0
    measured: dict[str, list[Any]] = {
        "accuracy": (predicted == test.labels).mean(0).tolist(),
        "balanced_accuracy": balanced_accuracy(predicted, test.labels),
        "average_precision": average_precision(scores, test.labels),
        "majority": np.maximum(share, 1 - share).tolist(),
    }
    return {
        "method": f"linear SVM on standardised mu, C = {SVM_C}",
        "images": {"train": len(train.mu), "test": len(test.mu)},
        **{f"{name}_mean": mean_of(values) for name, values in measured.items()},
        **{name: dict(zip(names, values, strict=True)) for name, values in measured.items()},
        "left_out": [name for name in attributes if name not in names],
    }
