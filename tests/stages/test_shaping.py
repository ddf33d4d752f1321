"""What responses are worth: each shaping against its function in numerics/rewards.py, which has oracles."""

from __future__ import annotations

import pytest

from algorist.numerics import rewards
from algorist.records import Rollout
from algorist.stages.shaping import Reward, worth

TEXTS = ["<think> a </think> \\boxed{1}", "\\boxed{1}", "<think> b \\boxed{2}", "c </think> </think> \\boxed{1}"]
LENGTHS = [10, 40, 90, 20]
RIGHT = [True, True, False, True]
GROUP = [
    Rollout.of("p", text, "s", index=i, num_tokens=n, tokens=tuple(range(n)), finish="length" if n == 90 else "stop")
    for i, (text, n) in enumerate(zip(TEXTS, LENGTHS, strict=True))
]


def test_plus_and_minus_one() -> None:
    assert worth(GROUP, RIGHT, Reward(), 100, 0.75) == [1.0, 1.0, -1.0, 1.0]
    assert worth(GROUP, RIGHT, Reward(right=2.0, wrong=0.0), 100, 0.75) == [2.0, 2.0, 0.0, 2.0]


def test_shaped_by_length() -> None:
    cosine = [rewards.cosine_length(r, n, max_length=100) for r, n in zip(RIGHT, LENGTHS, strict=True)]
    assert worth(GROUP, RIGHT, Reward(shaping="cosine"), 100, 0.75) == cosine
    lead = rewards.relative_length(RIGHT, LENGTHS, alpha=0.3, wrong=-1.0)
    assert worth(GROUP, RIGHT, Reward(shaping="lead", length_weight=0.3), 100, 0.75) == lead
    easy = rewards.length_when_easy(RIGHT, LENGTHS, alpha=0.3, least_accuracy=0.5)
    assert worth(GROUP, RIGHT, Reward(shaping="lambda", length_weight=0.3, easy_accuracy=0.5), 100, 0.75) == easy
    assert len({*cosine}) == len({*lead}) == len({*easy}) == 4


def test_how_easy_a_prompt_is_is_told_by_all_its_responses() -> None:
    """Those learned from may be half right by balancing, and the prompt easy all the same."""
    half, balanced, shaped = GROUP[1:3], RIGHT[1:3], Reward(shaping="lambda", length_weight=0.3, easy_accuracy=0.75)
    assert balanced == [True, False]
    assert worth(half, balanced, shaped, 100, 0.9) == rewards.length_when_easy(
        balanced, [one.num_tokens for one in half], alpha=0.3, least_accuracy=0.0
    )
    assert worth(half, balanced, shaped, 100, 0.9)[0] < 1.0 == worth(half, balanced, shaped, 100, 0.74)[0]


def test_phi4_scales_its_lengths_and_looks_at_form() -> None:
    found = worth(GROUP, RIGHT, Reward(shaping="phi4"), 31_744, 0.75)
    formed, ended = [True, True, False, False], [True, True, False, True]
    expected = [
        rewards.phi4_reward(r, one.tokens or (), finished=e, well_formed=f)
        for r, one, e, f in zip(RIGHT, GROUP, ended, formed, strict=True)
    ]
    assert found == expected and found[3] < found[0]
    assert worth(GROUP, RIGHT, Reward(shaping="phi4"), 20, 0.75) != found


def test_costs_are_added() -> None:
    found = worth(GROUP, RIGHT, Reward(overlong=0.2), 100, 0.75)
    assert found == [1.0, 1.0, -1.0 + rewards.overlong_penalty(90, max_length=100, margin=20), 1.0] and found[2] == -1.5
    loop = Rollout.of("p", "", "s", num_tokens=30, tokens=(7,) * 30)
    assert worth([loop], [True], Reward(repetition=0.5), 100, 1.0) == pytest.approx([1.0 - 0.5 * 27 / 28])
    assert worth([loop], [True], Reward(repetition=0.5, overlong=1.0), 100, 1.0) == pytest.approx([0.7 - 0.5 * 27 / 28])
