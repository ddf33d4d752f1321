"""From right and wrong to numbers with 95 % intervals, the problem being the unit that is drawn."""

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959963984540054  # two-sided 95 % point of the normal distribution


def mean_interval(shares: Sequence[float]) -> tuple[float, float, float]:
    """Mean of per-problem shares with a 95 % interval over problems.

    Wilson's interval, with the number of problems replaced by the effective one, n' = p (1 - p) / se^2, where se is
    the standard error of the mean of the shares. Several samples of a problem thus count as far as they differ,
    and at 0 % or 100 % the interval still has the width of n problems.

    Args:
        shares  (N,)  share of right samples of each problem, in [0, 1]

    Returns:
        (mean, low, high)

    Source: Wilson 1927; Korn and Graubard 1998 for the effective sample size.

    >>> [round(x, 3) for x in mean_interval([1.0, 0.0, 1.0, 0.0])]
    [0.5, 0.15, 0.85]
    """
    values = np.asarray(shares, dtype=np.float64)
    count, mean = len(values), float(values.mean())
    # p (1 - p) / n is the variance that single right-or-wrong samples would have.
    same = values.min() == values.max()  # the variance of equal numbers is not always 0 when it is computed
    effective = float(count) if same else mean * (1 - mean) * count / float(values.var())
    centre = (mean + Z**2 / (2 * effective)) / (1 + Z**2 / effective)
    reach = Z / (1 + Z**2 / effective) * math.sqrt(mean * (1 - mean) / effective + Z**2 / (4 * effective**2))
    return mean, max(0.0, centre - reach), min(1.0, centre + reach)


def paired_change(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Mean change of per-problem shares between two policies on the same problems, with a 95 % interval.

        d_i = after_i - before_i,   mean d ± 1.96 * std(d) / sqrt(N)

    Pairing removes what the problems have in common, which is most of the spread.

    Args:
        before, after  (N,)  share of right samples of each problem, same order

    Returns:
        (change, low, high)

    >>> paired_change([0.0, 0.0], [1.0, 1.0])
    (1.0, 1.0, 1.0)
    """
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    mean = float(difference.mean())
    reach = Z * float(difference.std(ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    return mean, mean - reach, mean + reach
