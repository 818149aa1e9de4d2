import numpy as np
import pytest
from sklearn.svm import LinearSVC

from trainer.artifacts import linear_svm

RNG = np.random.default_rng(3)
INPUTS = RNG.standard_normal((600, 12))
SCORES = INPUTS @ RNG.standard_normal(12) + 3 * RNG.standard_normal(600)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_the_boundary_is_the_one_that_scikit_learn_finds(threshold: float, balanced: bool) -> None:
    labels = threshold < SCORES
    reference = LinearSVC(C=0.01, dual=False, tol=1e-10, class_weight="balanced" if balanced else None)
    reference.fit(INPUTS, labels)
    w, b = linear_svm.fit(INPUTS, labels, 0.01, balanced)
    assert w == pytest.approx(reference.coef_[0], abs=1e-3 * np.abs(w).max())
    assert b == pytest.approx(reference.intercept_[0], abs=1e-3)
