"""Quotas: how many of each kind a balanced subset takes, and which of a kind when some shall come more often.

Both are built so that a subset changes little when its supply does: a source that is taken away leaves the draws of all
others as they are, and moves the quotas by what it held.
"""

from collections.abc import Sequence

import numpy as np


def water_fill(supply: Sequence[int], weights: Sequence[float], total: int) -> list[int]:
    """Share `total` among kinds by weight, none beyond its supply; what a small kind leaves goes to the others.

        q_k = min(supply_k, level * weights_k),   with the one level at which the q_k sum to total

    Fractions are rounded by largest remainder, on a tie the earlier kind first. A kind of weight 0 gets nothing.

    Args:
        supply   (K,)  how many there are of each kind
        weights  (K,)  share of each kind where supply is no limit, in any unit
        total    how many to take; more than there are means all

    Returns:
        (K,) quotas; their sum is min(total, supply of all kinds with weight).

    Source: water-filling as in Cover and Thomas, Elements of Information Theory, section 9.4, with the cells' heights
    in place of noise.

    >>> water_fill([10, 100, 100], [1.0, 1.0, 2.0], 100)
    [10, 30, 60]
    """
    stock = np.where(np.asarray(weights, dtype=np.float64) > 0, np.asarray(supply, dtype=np.int64), 0)
    share = np.where(stock > 0, np.asarray(weights, dtype=np.float64), 0.0)
    if total >= stock.sum():
        return [int(count) for count in stock]
    filled = np.zeros(len(stock))
    rest, left, open_ = float(total), float(share.sum()), share > 0
    # Kinds in the order in which they run dry as the level rises.
    for kind in sorted(np.flatnonzero(open_), key=lambda k: stock[k] / share[k]):
        if rest * share[kind] < stock[kind] * left:
            break
        filled[kind], open_[kind] = stock[kind], False
        rest, left = rest - stock[kind], left - share[kind]
    filled[open_] = rest * share[open_] / max(left, 1e-300)
    whole = np.floor(filled + 1e-9).astype(np.int64)
    remainder = np.where(open_, np.round(filled - whole, 9), -1.0)
    more = np.argsort(-remainder, kind="stable")[: int(total - whole.sum())]
    whole[more] += 1
    return [int(count) for count in whole]


def draw_keys(uniforms: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Keys whose n greatest are a draw of n without replacement, each next one chosen in proportion to its weight.

        key_i = log(u_i) / weights_i

    Because a key depends on its own item only, items may be drawn in any order and in any number of parts, and leaving
    one out changes no other's key.

    Args:
        uniforms  (N,)  in (0, 1)
        weights   (N,)  above 0

    Returns:
        (N,) keys below 0; they order items as u^(1/weight) does.

    Source: Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir", algorithm A.

    >>> [round(k, 2) for k in draw_keys([0.5, 0.5], [1.0, 2.0])]
    [-0.69, -0.35]
    """
    keys = np.log(np.asarray(uniforms, dtype=np.float64)) / np.asarray(weights, dtype=np.float64)
    return [float(key) for key in keys]
