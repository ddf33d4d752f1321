r"""Leakage: does the form of a response alone tell which of a pair is right?

A model that is taught to prefer longer, boxed or less hesitant responses learns a manner, not mathematics. So the form
of both responses of every pair is measured, by length, format and style, and it is asked how often it ranks the right
one first. Correctness may be seen, in the mathematics; what is measured here cannot see it.

    AUC = P(chosen > rejected) + P(equal) / 2      within pairs; 0.5 says nothing, 1 tells all

for each property, and for the best linear score of each group, fitted on four fifths of the problems and applied to the
others. Intervals are 95 %, over problems: Wilson's with the effective number of problems (numerics/estimates.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from algorist import store
from algorist.data.candidates import frame
from algorist.errors import RunError
from algorist.numerics.address import key
from algorist.numerics.estimates import mean_interval
from algorist.numerics.separation import bradley_terry
from algorist.records import Preference
from algorist.verify.extract import split_thoughts

# Group → its properties; what is measured is defined once, in `form`.
PROPERTIES = {
    "length": ("tokens",),
    "format": (
        "ended by itself",  # not cut off
        "boxes",
        "has a box",
        "thought is closed",
        "share outside thoughts",
        "ends a sentence",
        "length of last line",
    ),
    "style": (
        "digits",  # these and the next as shares of all bytes
        "LaTeX commands",
        "line breaks",
        "upper case",
        "other scripts",
        "word length",
        "hesitations",  # per word
        "emphasis",  # ** and # of Markdown, per word
    ),
}
SAMPLERS = "style"  # the group that a sampler's identity belongs to
MOST_SAMPLERS = 8  # the commonest ones that get a property of their own
FOLDS = 5
FEWEST = 20  # problems below which no score is fitted
TOGETHER = "all of these"  # the combined score of a group
EVERYTHING = "form"  # the combined score of all groups
KNOBS = {
    "length": "balance_lengths = true or a lower max_length_ratio",
    "format": "truncated = false and answered = true",
    "style": "same_sampler = true and repetitive = false",
}
_AGAIN = ("let me check", "let me re", "let me double")
# Counted as they stand, inside of longer words too: ten times as fast as looking for borders of words.
_HESITATIONS = (
    "wait",
    "hmm",
    "however",
    "alternatively",
    "actually",
    "maybe",
    "perhaps",
    "hold on",
    "not sure",
    *_AGAIN,
)
_SENTENCE_ENDS = (".", "!", "?", "。", "$.", "**")


@dataclass(frozen=True)
class Reading:
    """How well one property, or a group's combined score, ranks the right response first."""

    group: str
    name: str
    auc: float
    low: float  # of the 95 % interval
    high: float
    chosen: float | None = None  # mean of the property, None for a combined score
    rejected: float | None = None


def form(text: str, tokens: int, ended: bool) -> list[float]:
    """The properties of one response, in the order of PROPERTIES. Takes time linear in the text."""
    raw = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8)
    counts, size = np.bincount(raw, minlength=256), max(len(raw), 1)
    words = max(len(text.split()), 1)
    spoken, thoughts, unfinished = split_thoughts(text)
    last_line = text.rstrip()[text.rstrip().rfind("\n") + 1 :]
    boxes = text.count("\\boxed")
    letters = counts[65:91].sum() + counts[97:123].sum()
    return [
        float(tokens),
        float(ended),
        float(boxes),
        float(boxes > 0),
        float(bool(thoughts) and not unfinished),
        sum(map(len, spoken)) / max(len(text), 1),
        float(text.rstrip().endswith(_SENTENCE_ENDS)),
        float(len(last_line)),
        counts[48:58].sum() / size,
        counts[92] / size,
        counts[10] / size,
        counts[65:91].sum() / size,
        # First bytes of Cyrillic, Arabic and Indic letters, kana, Chinese and Hangul; Greek and signs are mathematics.
        (counts[0xD0:0xE2].sum() + counts[0xE3:0xEE].sum()) / size,
        letters / words,
        sum(map(text.lower().count, _HESITATIONS)) / words,
        (text.count("**") + text.count("\n#")) / words,
    ]


def features(shard: Path, rollouts: Path) -> pa.Table:
    """The form of both responses of each pair of a set's shard: problem, samplers, chosen and rejected (F,) each."""
    pairs = store.read_shard(shard, Preference)
    lines = {one: (finish == "stop", sampler) for one, finish, sampler in frame(rollouts, _SAID).iter_rows()}
    ends = [(lines[pair.chosen_id], lines[pair.rejected_id]) for pair in pairs]
    chosen = [form(p.chosen[0].content, p.chosen_tokens, a[0]) for p, (a, _) in zip(pairs, ends, strict=True)]
    rejected = [form(p.rejected[0].content, p.rejected_tokens, b[0]) for p, (_, b) in zip(pairs, ends, strict=True)]
    vector = pa.list_(pa.float32(), sum(map(len, PROPERTIES.values())))
    return pa.table(
        {
            "problem_id": pa.array([pair.problem_id for pair in pairs], pa.string()),
            "chosen_sampler": pa.array([a[1] for a, _ in ends], pa.string()).dictionary_encode(),
            "rejected_sampler": pa.array([b[1] for _, b in ends], pa.string()).dictionary_encode(),
            "chosen": pa.array(chosen, vector),
            "rejected": pa.array(rejected, vector),
        }
    )


def readings(tables: Sequence[pa.Table], seed: int) -> list[Reading]:
    """What each property and each group tells, from the features of all shards."""
    table = pa.concat_tables(tables).unify_dictionaries() if tables else pa.table({})
    if not table.num_rows:
        return []
    owners = np.asarray(table["problem_id"].to_pylist())
    problems, owner = np.unique(owners, return_inverse=True)
    folds = np.asarray([key(seed, "leakage", problem) % FOLDS for problem in problems])[owner]
    chosen, rejected = _matrix(table, "chosen"), _matrix(table, "rejected")
    names = [(group, name) for group, found in PROPERTIES.items() for name in found]
    for sampler, one, other in _samplers(table):
        names.append((SAMPLERS, f"by {sampler}"))
        chosen, rejected = np.column_stack([chosen, one]), np.column_stack([rejected, other])
    result = []
    for group in PROPERTIES:
        places = [place for place, (of, _) in enumerate(names) if of == group]
        for place in places:
            one, other = chosen[:, place], rejected[:, place]
            auc = _interval(one - other, owner)
            result.append(Reading(group, names[place][1], *auc, float(one.mean()), float(other.mean())))
        result += _combined(group, TOGETHER, chosen[:, places] - rejected[:, places], owner, folds)
    return result + _combined(EVERYTHING, TOGETHER, chosen - rejected, owner, folds)


def check(found: Sequence[Reading], max_auc: float, where: Path) -> None:
    """Raises RunError where a group surely tells more than `max_auc`, naming it, its strongest property and the knob.

    Surely: the lower end of the interval lies above. A few pairs that lean to one side by chance stop nothing.
    """
    for total in found:
        if total.group not in KNOBS or total.name != TOGETHER or total.low <= max_auc:
            continue
        alone = [one for one in found if one.group == total.group and one.name != TOGETHER]
        most = max(alone, key=lambda one: abs(one.auc - 0.5))
        raise RunError(
            f"{where}: {total.group} alone tells the right response from the wrong one in {total.auc:.0%} of the pairs "
            f"(at least {total.low:.0%}; at most {max_auc:.0%} was expected), most of all by {most.name} "
            f"(AUC {most.auc:.2f}). Set [curate.dpo] {KNOBS[total.group]}, or raise max_auc."
        )


def write(path: Path, found: Sequence[Reading], pairs: int) -> None:
    """Write the readings of a set as JSON beside it."""
    store.write_json(path, {"pairs": pairs, "interval": "95 %, over problems", "readings": [asdict(r) for r in found]})


_SAID = ("id", "finish", "sampler")


def _matrix(table: pa.Table, column: str) -> NDArray[np.float32]:
    """(P, F) of a column of vectors."""
    flat = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=np.float32).reshape(table.num_rows, -1)


def _samplers(table: pa.Table) -> list[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    """(sampler, whether it wrote the chosen one, the rejected one), of the commonest where there are several."""
    sides = [np.asarray(table[f"{side}_sampler"].to_pylist()) for side in ("chosen", "rejected")]
    known, counts = np.unique(np.concatenate(sides), return_counts=True)
    if len(known) < 2:
        return []
    common = known[np.argsort(-counts, kind="stable")[:MOST_SAMPLERS]]
    return [(str(one), *((side == one).astype(np.float32) for side in sides)) for one in sorted(common)]


def _interval(differences: NDArray[np.floating], owner: NDArray[np.intp]) -> tuple[float, float, float]:
    """(AUC, low, high) of scores' differences: each problem's mean counts once."""
    if not differences.any():  # the same in all pairs: that it says nothing is no estimate
        return 0.5, 0.5, 0.5
    ranks = (np.sign(differences) + 1) / 2
    shares = np.bincount(owner, weights=ranks) / np.bincount(owner)
    return mean_interval(shares.tolist())


def _combined(
    group: str, name: str, differences: NDArray[np.floating], owner: NDArray[np.intp], folds: NDArray[np.intp]
) -> list[Reading]:
    """The best linear score of some properties, each pair scored by weights that were fitted without its problem."""
    if owner.max() + 1 < FEWEST:
        return []
    scale = np.sqrt(np.square(differences, dtype=np.float64).mean(axis=0)) + 1e-12
    # Bounded, so that a single endless response does not set the weights; the sign is what a property's own AUC uses.
    bounded = np.concatenate([np.tanh(differences / scale), np.sign(differences)], axis=1).astype(np.float32)
    scores = np.zeros(len(bounded))
    for fold in range(FOLDS):
        held_out = folds == fold
        fitted_on = bounded[~held_out]
        weights = bradley_terry(fitted_on, ridge=1 / max(len(fitted_on), 1))  # as one prior of unit width would
        scores[held_out] = bounded[held_out] @ weights
    return [Reading(group, name, *_interval(np.round(scores, 9), owner))]
