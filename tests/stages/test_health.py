"""Each rule on entries that break it and on entries that do not, word for word."""

from __future__ import annotations

from typing import Any

import pytest

from algorist.stages import rlvr
from algorist.stages.health import Health, alarm

WELL = {
    "sampled": 100,
    "ended": 0.9,
    "groups": 10,
    "none_right": 4,
    "none_wrong": 1,
    "too_easy": 3,
    "entropy": 0.5,
    "ratio_tail": 0.001,
    "wrong_len": 100.0,
    "right_len": 100.0,
    "unjudged": 5,
    "several_boxes": 0.1,
    "bare": 0.1,
}


def entries(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**WELL, **change} for change in changes]


def test_all_is_well() -> None:
    assert alarm(Health(), []) == alarm(Health(), entries({})) == alarm(Health(), entries(*[{}] * 9)) == ""
    assert alarm(Health(), [{"loss": 1.0}]) == ""  # the second optimizer step of a generation


def test_ratios_are_those_of_all_optimizer_steps_on_a_generation() -> None:
    calm, moved, late = entries({"ratio_tail": 0.0}, {"ratio_tail": 0.0}, {"ratio_tail": 0.01})
    second = {"ratio_tail": 0.05, "temperature": 1.0}
    assert alarm(Health(), [calm, second]).startswith("5.0% of the tokens moved by more than a factor of 2")
    assert alarm(Health(), [calm, second, moved]) == ""  # judged anew with each generation
    assert alarm(Health(), [second, late, {"ratio_tail": 0.0}]) == ""


@pytest.mark.parametrize("updates", [1, 2, 4])
def test_slopes_are_seen_however_many_optimizer_steps_a_generation_has(updates: int) -> None:
    settings = rlvr.Settings(updates=updates)
    falling = entries(*({"entropy": 0.5 / 2**i} for i in range(6)))
    steps = [entry for one in falling for entry in (one, *[{"ratio_tail": 0.0}] * (updates - 1))]
    for end in range(3 * updates + 1, len(steps) + 1):
        shown = steps[:end][-rlvr.STAGE.looked_at(settings) :]
        assert rlvr.STAGE.alarm(settings, shown).startswith("The policy's entropy fell")


LONGER = [{"wrong_len": 100.0 + 20 * i, "right_len": 100.0 + i} for i in range(4)]
BROKEN = [
    ([{"ended": 0.6}], "40% of the responses are cut at max_tokens and count as wrong: raise max_tokens."),
    (
        [{"groups": 1, "none_right": 8, "too_easy": 1}],
        "91% of the prompts teach nothing, most are too hard: raise oversample or prompts.min_accuracy.",
    ),
    (
        [{"groups": 1, "none_right": 1, "too_easy": 8}],
        "91% of the prompts teach nothing, most are too easy: lower prompts.max_accuracy.",
    ),
    (
        [{"groups": 20, "kept_flat": 19, "none_right": 0, "none_wrong": 0, "too_easy": 0, "accuracy": 0.9}],
        "95% of the prompts teach nothing, most are too easy: lower prompts.max_accuracy.",
    ),
    (
        [{"groups": 20, "kept_flat": 19, "none_right": 0, "none_wrong": 0, "too_easy": 0, "accuracy": 0.1}],
        "95% of the prompts teach nothing, most are too hard: raise oversample or prompts.min_accuracy.",
    ),
    (
        [{"entropy": x} for x in (0.5, 0.4, 0.2, 0.14)],
        "The policy's entropy fell from 0.500 to 0.140 nats in 3 generations: lower learning_rate, or raise "
        "objective.clip_high or temperature.end.",
    ),
    (
        [{"ratio_tail": 0.05}],
        "5.0% of the tokens moved by more than a factor of 2: lower learning_rate or updates, or correct them.",
    ),
    (
        LONGER,
        "Wrong responses grew by a factor of 1.6 and right ones by 1.0: a long wrong response costs each of its "
        'tokens little; set objective.average = "token".',
    ),
    (
        [{"unjudged": 20}],
        "20% of the responses could not be judged: look at the verdicts' reasons, and raise [verify] seconds.",
    ),
    (
        [{"several_boxes": 0.5}],
        "50% of the right responses box several answers: the reward may be paid for a trick; read some of them with "
        "`algorist show`.",
    ),
    (
        [{"bare": 0.5}],
        "50% of the right responses say hardly a word before the answer: the reward may be paid for a trick; read "
        "some of them with `algorist show`.",
    ),
]


@pytest.mark.parametrize(("changes", "said"), BROKEN)
def test_a_broken_rule_names_cause_and_key(changes: list[dict[str, Any]], said: str) -> None:
    found = entries(*changes)
    if len(changes) > 1:
        assert alarm(Health(), found[:-1]) == ""  # no slope yet
    assert alarm(Health(), found) == said
    assert alarm(Health(), [*found, WELL]) == ""


def test_several_rules_at_once() -> None:
    assert alarm(Health(), entries({"ended": 0.6, "bare": 0.5})) == f"{BROKEN[0][1]} {BROKEN[-1][1]}"


def test_each_rule_can_be_switched_off() -> None:
    off = Health(
        max_truncated=1.0,
        max_flat=1.0,
        min_entropy=0.0,
        max_ratio_tail=1.0,
        max_length_growth=1e9,
        max_unjudged=1.0,
        max_exploits=1.0,
    )
    for changes, _ in BROKEN:
        assert alarm(off, entries(*changes)) == ""


def test_right_and_wrong_growing_together_is_no_alarm() -> None:
    assert (
        alarm(Health(), entries(*[{"wrong_len": 100.0 + 20 * i, "right_len": 100.0 + 20 * i} for i in range(4)])) == ""
    )
