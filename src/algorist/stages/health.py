"""The health of stage 4: rules that name the likely cause and the key to turn, before a run is lost.

Each rule looks at the journal of the last steps and says one sentence, or nothing. They are on by default; a threshold
of its own switches each of them off. What is said goes to the journal and to the screen, and the checkpoint from
before the first of an unbroken row of alarms is kept (train.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Entries = Sequence[Mapping[str, Any]]
_SEEN = 4  # generations before a slope is judged


@dataclass(frozen=True)
class Health:
    """When to stop, and when to warn."""

    max_logprob_gap: float = 0.1  # mean |trainer - sampler| in nats per token above which the run stops
    patience: float = 3_600.0  # seconds without a finished response after which the run ends with all stacks; 0 never
    max_truncated: float = 0.3  # share of responses cut at max_tokens
    max_flat: float = 0.8  # share of prompts without a signal: all right, all wrong, or too easy; dropped or kept
    min_entropy: float = 0.3  # of what it was some generations before
    max_ratio_tail: float = 0.02  # share of tokens whose probability more than doubled or halved since the sampling
    max_length_growth: float = 1.5  # of wrong responses over some generations, while right ones do not grow
    max_unjudged: float = 0.1  # share of responses that could not be judged
    max_exploits: float = 0.3  # share of right responses with several boxed answers, or with hardly a word before one

    def __post_init__(self) -> None:
        shares = ("max_truncated", "max_flat", "min_entropy", "max_ratio_tail", "max_unjudged", "max_exploits")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)} is a share, 0 to 1 was expected.")
        if min(self.max_logprob_gap, self.patience, self.max_length_growth) < 0:
            raise ValueError("max_logprob_gap, patience and max_length_growth must not be negative.")


def alarm(health: Health, entries: Entries) -> str:
    """What is going wrong, one sentence for each broken rule; empty where all is well."""
    seen = _generations(entries)
    if not seen:
        return ""
    said = (_truncated, _flat, _entropy, _ratios, _lengths, _unjudged, _exploits)
    return " ".join(text for rule in said if (text := rule(health, seen)))


def _generations(entries: Entries) -> list[dict[str, Any]]:
    """One entry for each generation whose first optimizer step is there, with the worst ratios of all its steps."""
    seen: list[dict[str, Any]] = []
    for entry in entries:
        if entry.get("sampled"):
            seen.append(dict(entry))
        elif seen:
            seen[-1]["ratio_tail"] = max(one.get("ratio_tail", 0.0) for one in (seen[-1], entry))
    return seen


def _truncated(health: Health, seen: Entries) -> str:
    share = 1 - seen[-1]["ended"]
    if share <= health.max_truncated:
        return ""
    return f"{share:.0%} of the responses are cut at max_tokens and count as wrong: raise max_tokens."


def _flat(health: Health, seen: Entries) -> str:
    latest = seen[-1]
    dropped = latest["none_right"] + latest["none_wrong"] + latest["too_easy"]
    kept = latest.get("kept_flat", 0)
    share = (dropped + kept) / max(dropped + latest["groups"], 1)
    if share <= health.max_flat:
        return ""
    easy = latest["accuracy"] > 0.5 if kept else dropped > 2 * latest["none_right"]
    knob = "lower prompts.max_accuracy" if easy else "raise oversample or prompts.min_accuracy"
    return f"{share:.0%} of the prompts teach nothing, most are too {'easy' if easy else 'hard'}: {knob}."


def _entropy(health: Health, seen: Entries) -> str:
    known = [entry["entropy"] for entry in seen if entry.get("entropy")]
    if len(known) < _SEEN or known[-1] >= health.min_entropy * known[0]:
        return ""
    return (
        f"The policy's entropy fell from {known[0]:.3f} to {known[-1]:.3f} nats in {len(known) - 1} generations: lower "
        "learning_rate, or raise objective.clip_high or temperature.end."
    )


def _ratios(health: Health, seen: Entries) -> str:
    share = seen[-1].get("ratio_tail", 0.0)
    if share <= health.max_ratio_tail:
        return ""
    return (
        f"{share:.1%} of the tokens moved by more than a factor of 2: lower learning_rate or updates, or correct them."
    )


def _lengths(health: Health, seen: Entries) -> str:
    first, last = seen[0], seen[-1]
    if len(seen) < _SEEN or min(first["wrong_len"], first["right_len"], last["right_len"]) <= 0:
        return ""
    wrong, right = last["wrong_len"] / first["wrong_len"], last["right_len"] / first["right_len"]
    if wrong <= health.max_length_growth or wrong <= 1.2 * right:
        return ""
    return (
        f"Wrong responses grew by a factor of {wrong:.1f} and right ones by {right:.1f}: a long wrong response costs "
        'each of its tokens little; set objective.average = "token".'
    )


def _unjudged(health: Health, seen: Entries) -> str:
    share = seen[-1]["unjudged"] / seen[-1]["sampled"]
    if share <= health.max_unjudged:
        return ""
    return (
        f"{share:.0%} of the responses could not be judged: look at the verdicts' reasons, and raise [verify] seconds."
    )


def _exploits(health: Health, seen: Entries) -> str:
    latest = seen[-1]
    for key, what in (("several_boxes", "box several answers"), ("bare", "say hardly a word before the answer")):
        if latest.get(key, 0.0) > health.max_exploits:
            return (
                f"{latest[key]:.0%} of the right responses {what}: the reward may be paid for a trick; read some of "
                "them with `algorist show`."
            )
    return ""
