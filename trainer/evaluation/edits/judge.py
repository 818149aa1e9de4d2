"""How far the judge of edits can be trusted: its accuracy on images, and on reconstructions."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.evaluation.classifier import Classifier
from trainer.evaluation.encoded_run import EncodedRun


def measure(encoded: EncodedRun, judge: Classifier) -> dict[str, Any]:
    """Compares what the judge sees with the test split's labels.

    A judge that is blind on reconstructions, smoother than photographs, would make everything that it says of edits
    void. It cannot see there what the latents do not hold: `attribute_prediction` says what they do.

    Returns:
        `accuracy_mean`, `majority_mean`, and by attribute `accuracy` and `majority`;
        `reconstructions`: `accuracy_mean`, and by attribute `accuracy`; `unsure`: attributes in which it is no better
        there than always predicting the majority, so that flips of them say little.
    """
    names = judge.attributes
    seen = judge.predict(encoded.reconstructions)
    accuracy = (seen == encoded.labels).mean(0).tolist()
    return {
        "accuracy_mean": float(np.mean(list(judge.accuracy.values()))),
        "majority_mean": float(np.mean(list(judge.majority.values()))),
        "accuracy": judge.accuracy,
        "majority": judge.majority,
        "reconstructions": {
            "accuracy_mean": float(np.mean(accuracy)),
            "accuracy": dict(zip(names, accuracy, strict=True)),
        },
        "unsure": [name for name, right in zip(names, accuracy, strict=True) if right <= judge.majority[name]],
    }
