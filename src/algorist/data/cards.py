"""Cards: what a set holds, for people (README.md, a Hugging Face data card) and for programs (card.json).

Counts by source, level, domain and licence, lengths, pass rates, everything that was left out and why, the settings
that chose, and the data sets that it was drawn from. The Hub shows the folder as it is when it is uploaded.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algorist import store
from algorist.data.leakage import Reading
from algorist.records import LEVELS

CARD = "card.json"
PAGE = "README.md"
QUANTILES = (0, 5, 25, 50, 75, 95, 99, 100)  # per cent
RATES = 8  # classes of the pass rate
MOST_ROWS = 30  # of one table of counts; the rest is summed up
_TITLES = {
    "midtrain": "stage 1, mid-training",
    "sft": "stage 2, supervised fine-tuning",
    "dpo": "stage 3, preferences",
    "rlvr": "stage 4, prompts of reinforcement learning",
}
_ABOUT = {
    "midtrain": "Mathematics problems with responses of a teacher that were verified right and ended by themselves.",
    "sft": "A compact, balanced selection of hard mathematics problems with responses that were verified right.",
    "dpo": "Pairs of a right and a wrong response to the same mathematics problem, of similar length and form.",
    "rlvr": "Mathematics problems with answers that a program can check.",
}
_COLUMNS = {
    "midtrain": "`messages` is a conversation of one question and one response",
    "sft": "`messages` is a conversation of one question and one response",
    "dpo": "`prompt`, `chosen` and `rejected` are turns of a conversation",
    "rlvr": "`prompt` is the question's turn and `answer` what the source gives",
}
_COUNTED = {"midtrain": ("rollouts", 1), "sft": ("rollouts", 1), "dpo": ("rollouts", 2), "rlvr": ("problems", 1)}
_LENGTHS = {
    "midtrain": {"response": "num_tokens"},
    "sft": {"response": "num_tokens"},
    "dpo": {"chosen": "chosen_tokens", "rejected": "rejected_tokens"},
    "rlvr": dict[str, str](),
}
_OPEN = 'import datasets\n\nrows = datasets.load_dataset("parquet", data_files="*.parquet", split="train")'
# What the Hub knows, as it spells it.
_LICENCES = {"mit", "apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-sa-3.0", "cc0-1.0", "odc-by"}
_LICENCES |= {"bsd-3-clause", "cc-by-3.0", "cc-by-nc-sa-4.0", "gpl-3.0", "lgpl-3.0", "mpl-2.0", "unlicense", "pddl"}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write(
    folder: Path,
    name: str,
    manifest: store.Manifest,
    *,
    parents: Mapping[str, str],
    settings: Mapping[str, Any],
    told: Sequence[Reading] = (),
) -> None:
    """Write both cards of a finished set beside its shards, read one at a time.

    Args:
        name      midtrain, sft, dpo or rlvr
        parents   data set → its id: what the set was drawn from
        settings  the rules that chose, by table of [curate]
        told      what the form of pairs tells (data/leakage.py)
    """
    card = describe(folder, name, manifest)
    card |= {"settings": dict(settings), "parents": dict(parents), "leakage": [asdict(one) for one in told]}
    store.write_json(folder / CARD, card)
    store.write_text(folder / PAGE, page(card))


def describe(folder: Path, name: str, manifest: store.Manifest) -> dict[str, Any]:
    """Everything that can be counted on the set itself."""
    counts: dict[str, Counter[str]] = {column: Counter() for column in ("source", "level", "domain", "licence")}
    lengths: dict[str, list[NDArray[np.int64]]] = {title: [] for title in _LENGTHS[name]}
    rates: Counter[int] = Counter()
    problems = 0
    for shard in manifest.shards:
        columns = ("problem_id", "pass_rate", *counts, *_LENGTHS[name].values())
        table = store.read_columns(folder / shard, columns)
        problems += len(table["problem_id"].unique())  # a problem is in one shard only
        for column, counter in counts.items():
            for found in table[column].value_counts().to_pylist():
                counter[found["values"]] += found["counts"]
        for title, column in _LENGTHS[name].items():
            lengths[title].append(table[column].to_numpy())
        rates.update(-1 if rate is None else _rate_class(rate) for rate in table["pass_rate"].to_pylist())
    unit, each = _COUNTED[name]
    return {
        "set": name,
        "id": manifest.id,
        "rows": manifest.rows,
        "problems": problems,
        "entered": {"unit": unit, "count": each * manifest.rows + sum(manifest.dropped.values())},
        "dropped": dict(sorted(manifest.dropped.items(), key=lambda item: (-item[1], item[0]))),
        **{column: _ordered(column, counter) for column, counter in counts.items()},
        "tokens": {
            title: _quantiles(np.concatenate([np.zeros(0, np.int64), *found])) for title, found in lengths.items()
        },
        "pass_rate": {_rate_label(place): rates[place] for place in (*range(RATES + 1), -1) if rates[place]},
    }


def page(card: Mapping[str, Any]) -> str:
    """README.md: the Hub's front matter, then tables."""
    name = card["set"]
    parts = [
        _front_matter(card),
        f"# {_TITLES[name][0].upper()}{_TITLES[name][1:]}\n",
        f"{_ABOUT[name]} {card['rows']:,} rows over {card['problems']:,} problems; {_COLUMNS[name]}. "
        f"Made with Algorist; the set's id is `{card['id']}`.\n",
        f"```python\n{_OPEN}\n```\n",
    ]
    for column, title in (("level", "Levels"), ("domain", "Domains"), ("source", "Sources"), ("licence", "Licences")):
        parts.append(f"## {title}\n\n{_counts(column, card[column])}")
    if card["tokens"]:
        head = ["tokens", *(("shortest" if q == 0 else "longest" if q == 100 else f"{q} %") for q in QUANTILES), "mean"]
        rows = [[title, *(f"{value:,}" for value in found.values())] for title, found in card["tokens"].items()]
        about = "Of the response, in the tokens of the model to be trained, its end of turn not counted.\n"
        parts.append(f"## Lengths\n\n{about}\n{_table(head, rows)}")
    parts.append(
        f"## Pass rates\n\nShare of the teacher's judged rollouts that are right.\n\n{_rates(card['pass_rate'])}"
    )
    if card["leakage"]:
        parts.append(f"## What form alone tells\n\n{_told(card['leakage'])}")
    entered = card["entered"]
    kept = entered["count"] - sum(card["dropped"].values())
    rows = [["entered", f"{entered['count']:,}"], *([_cell(why), f"{n:,}"] for why, n in card["dropped"].items())]
    parts.append(f"## Left out\n\n{_table([entered['unit'], 'count'], [*rows, ['kept', f'{kept:,}']])}")
    settings = [[f"`{key}`", f"`{json.dumps(value, ensure_ascii=False)}`"] for key, value in _flat(card["settings"])]
    parts.append(f"## Settings\n\n{_table(['[curate]', 'value'], settings)}")
    parts.append(
        "## Drawn from\n\n" + _table(["data set", "id"], [[part, f"`{one}`"] for part, one in card["parents"].items()])
    )
    return "\n".join(parts)


def licences(counts: Mapping[str, int]) -> list[str]:
    """Licences as the Hub spells them: its own names where it has one, else "other"; "unknown" where none is stated."""
    names = {one: "-".join(one.lower().split()) for one in counts}
    names = {one: name if name in _LICENCES else name.removesuffix("-license") for one, name in names.items()}
    return sorted({"unknown" if not one else name if name in _LICENCES else "other" for one, name in names.items()})


def _front_matter(card: Mapping[str, Any]) -> str:
    """YAML; JSON's spelling of lists and strings is YAML too."""
    size = next((label for most, label in _SIZES if card["rows"] < most), "n>1M")
    front = {
        "license": licences(card["licence"]) or ["unknown"],
        "task_categories": ["text-generation"],
        "tags": ["mathematics", "reasoning", "algorist", card["set"]],
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "*.parquet"}]}],
    }
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---\n"])


def _ordered(column: str, counter: Counter[str]) -> dict[str, int]:
    """Levels from easy to hard, all else from common to rare; what has none last."""
    rank = {level: place for place, level in enumerate(LEVELS)}
    by_level = column == "level"
    order = sorted(counter, key=lambda one: (one == "", rank.get(one, 9) if by_level else -counter[one], one))
    return {one: counter[one] for one in order}


def _quantiles(values: NDArray[np.int64]) -> dict[str, int]:
    """Lengths in tokens at QUANTILES, and their mean."""
    if not len(values):
        return {}
    found = np.percentile(values, QUANTILES, method="inverted_cdf")
    return {f"{q} %": int(value) for q, value in zip(QUANTILES, found, strict=True)} | {"mean": round(values.mean())}


def _rate_class(rate: float) -> int:
    """0 for a pass rate of 0, else the eighth that it ends in: 1 for up to 1/8, 8 for more than 7/8."""
    return int(np.ceil(rate * RATES - 1e-9))


def _rate_label(place: int) -> str:
    return "not known" if place < 0 else "0" if place == 0 else f"to {place / RATES:.3g}"


def _rates(rates: Mapping[str, int]) -> str:
    most = max(rates.values(), default=1)
    rows = [[label, f"{count:,}", "█" * max(1, round(30 * count / most))] for label, count in rates.items()]
    return _table(["pass rate", "rows", ""], rows, left=(0, 2))


def _counts(column: str, counts: Mapping[str, int]) -> str:
    total = max(sum(counts.values()), 1)
    shown = list(counts.items())
    rest = shown[MOST_ROWS - 1 :] if len(shown) > MOST_ROWS else []
    shown = shown[: len(shown) - len(rest)]
    rows = [[_cell(one) or "not stated", f"{n:,}", f"{100 * n / total:.1f} %"] for one, n in shown]
    if rest:
        others = sum(n for _, n in rest)
        rows.append([f"{len(rest):,} others", f"{others:,}", f"{100 * others / total:.1f} %"])
    return _table([column, "rows", "share"], rows)


def _told(readings: Sequence[Mapping[str, Any]]) -> str:
    """The AUC of each property of form, and of each group's combined score."""
    about = (
        "How often a property alone ranks the right response first (AUC within pairs, 0.5 says nothing), with 95 % "
        "intervals over problems. In bold: the best linear score of a group, on problems that it was not fitted on.\n"
    )
    rows = []
    for one in readings:
        bold = "**" if one["chosen"] is None else ""
        means = ["" if one[side] is None else f"{one[side]:,.4g}" for side in ("chosen", "rejected")]
        auc, interval = f"{bold}{one['auc']:.3f}{bold}", f"{one['low']:.3f} to {one['high']:.3f}"
        rows.append([one["group"], f"{bold}{_cell(one['name'])}{bold}", *means, auc, interval])
    head = ["group", "property", "mean of chosen", "of rejected", "AUC", "95 % interval"]
    return f"{about}\n{_table(head, rows, left=(0, 1))}"


def _flat(settings: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in settings.items():
        found += _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else [(above + key, value)]
    return found


def _cell(text: str) -> str:
    """A text that cannot break a table out of its row."""
    return " ".join(text.split()).replace("|", "\\|")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """A Markdown table, its columns to the right but those in `left`."""
    rule = ["---" if place in left else "---:" for place in range(len(head))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *rows))
