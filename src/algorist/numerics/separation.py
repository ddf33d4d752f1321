"""Separation: how well some measured properties tell the better of two apart from the worse."""

import numpy as np
from numpy.typing import NDArray

_STEPS = 50  # of Newton's method; a handful is enough, halved steps make it more


def bradley_terry(differences: NDArray[np.floating], *, ridge: float = 1e-3) -> NDArray[np.float64]:
    """Weights under which the better one of each pair scores higher, by penalised maximum likelihood.

        w = argmax  (1/P) * sum_p log sigmoid(w . d_p) - ridge/2 * |w|^2

    There is no constant: which of the two stands first says nothing. The penalty keeps w finite where some property
    tells all pairs apart.

    Args:
        differences  (P, F)  properties of the better one minus those of the worse, about unit scale
        ridge        strength of the penalty, above 0

    Returns:
        (F,) weights; zeros where there are no pairs.

    Source: Bradley and Terry 1952, with Newton's method for logistic regression (Bishop 2006, section 4.3.3).

    >>> bradley_terry(np.array([[1.0], [1.0], [1.0], [-1.0]]), ridge=1e-9).round(3)   # log(3)
    array([1.099])
    """
    rows = np.asarray(differences, dtype=np.float64)
    count, size = rows.shape
    weights = np.zeros(size)
    if not count:
        return weights

    def value(at: NDArray[np.float64]) -> float:
        return float(-np.logaddexp(0.0, -(rows @ at)).mean() - ridge / 2 * at @ at)

    best = value(weights)
    for _ in range(_STEPS):
        doubt = 1 / (1 + np.exp(np.clip(rows @ weights, -500, 500)))  # 1 - sigmoid
        gradient = rows.T @ doubt / count - ridge * weights
        curvature = (rows * (doubt * (1 - doubt))[:, None]).T @ rows / count + ridge * np.eye(size)
        step = np.linalg.solve(curvature, gradient)
        while (after := value(weights + step)) < best and np.abs(step).max() > 1e-12:
            step /= 2
        weights, best = weights + step, max(best, after)
        if np.abs(step).max() < 1e-9:
            break
    return weights
