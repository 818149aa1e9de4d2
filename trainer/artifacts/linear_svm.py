"""Linear support vector machines, fitted by L-BFGS.

scikit-learn's LinearSVC minimises the same objective (`dual=False`: squared hinge, L2 penalty on weights and constant)
and finds the same boundaries, over sparse matrices and on one thread; a data set's latents are dense.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from trainer.errors import TrainerError

Floats = NDArray[np.float64]


def fit(inputs: Floats, labels: NDArray[np.bool_], c: float, balanced: bool = False) -> tuple[Floats, float]:
    """Minimises |w|^2 / 2 + b^2 / 2 + c sum_i s_i max(0, 1 - y_i (w x_i + b))^2, with y = 1 where the label holds.

    Args:
        inputs: (N, D), each dimension of about unit variance.
        labels: (N,) both values must occur.
        c: weight of the errors.
        balanced: s_i = N / (2 N_y), so that both sides weigh the same; otherwise 1.

    Returns:
        w (D,) and b.

    Raises:
        TrainerError: it does not converge.
    """
    signs = np.where(labels, 1.0, -1.0)
    positives = labels.sum()
    sides = np.where(labels, positives, len(labels) - positives)
    weights = c * (len(labels) / (2 * sides) if balanced else np.ones(len(labels)))

    def objective(parameters: Floats) -> tuple[float, Floats]:
        w, b = parameters[:-1], parameters[-1]
        slack = np.maximum(1 - signs * (inputs @ w + b), 0)
        pull = -2 * weights * signs * slack
        gradient = parameters + np.append(inputs.T @ pull, pull.sum())
        return float(parameters @ parameters / 2 + weights @ slack**2), gradient

    found = minimize(objective, np.zeros(inputs.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 2000})
    if not found.success:
        raise TrainerError(f"a linear SVM did not converge: {found.message}")
    return found.x[:-1], float(found.x[-1])
