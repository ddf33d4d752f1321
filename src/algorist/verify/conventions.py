"""Conventions: what counts as the same answer where mathematics leaves it open, each with a name and a default."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conventions:
    """[verify], the conventions. docs/verify.md shows each with examples."""

    rounding: float = 1e-5  # relative error of a decimal that may stand for an exact value, if right to its last digit
    gold_digits: int = 4  # a gold decimal of so many digits is met by any exact value that rounds to it; 0: never
    percent: bool = True  # the sign may be missing on one side: 10% and 10; 10% and 0.1 are equal in any case
    units: bool = True  # a unit may be missing on one side: 15 cm and 15; units that disagree are never equal
    decimal_comma: bool = True  # 2,74 may mean 2.74 where the gold answer is a decimal
    base: bool = True  # the candidate may leave the base out: 204 for 204_5
    names: bool = True  # the left side may be missing: x = 3 and 3, f(x) = 2x and 2x
    ordered_lists: bool = False  # whether 1, 2 and 2, 1 differ; tuples always do
    tuple_as_set: bool = False  # whether (1, 2) may stand for \{1, 2\}
    inequality_as_set: bool = True  # x > 5 and (5, \infty)
    letter_case: bool = False  # whether a and A differ as multiple-choice answers
    unevaluated: bool = False  # whether a formula with more than one step left to do may stand for a plain number

    def __post_init__(self) -> None:
        if not 0 <= self.rounding < 0.1 or self.gold_digits < 0:
            raise ValueError("rounding must be at least 0 and below 0.1, and gold_digits at least 0.")


DEFAULT = Conventions()
