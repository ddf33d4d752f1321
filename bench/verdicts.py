"""False positives, false negatives and open verdicts by class of answer, ours beside math-verify's, on labelled pairs.

    python bench/verdicts.py tests/verify/cases/classes.jsonl [more.jsonl ...] [--by class|kind] [--show]

A row is {"gold", "candidate", "kind", "equivalent"}, with "class" where there is one and "policy" where the label
follows a convention; those rows are left out, because a verifier may decide them otherwise. math-verify gets each pair
in a process that is killed after five seconds: then, and where it reads nothing, its verdict is open.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import sys
from collections import Counter, defaultdict
from multiprocessing.connection import Connection
from pathlib import Path

from algorist.verify.conventions import DEFAULT
from algorist.verify.pairs import Row, judge_all

LIMIT = 5.0  # seconds
Verdicts = list[bool | None]


def pair(row: dict[str, str]) -> dict[str, str]:
    """The row; one of a file of rollouts ({"gold", "completion", "correct"}) as a pair."""
    if "completion" not in row:
        return row
    return {**row, "candidate": row["completion"], "kind": "completion", "equivalent": row["correct"]}


def ours(rows: list[dict[str, str]]) -> Verdicts:
    """As `algorist verify` judges them."""
    found = (Row(place, row["gold"], row["candidate"], row["kind"]) for place, row in enumerate(rows))
    judged = judge_all(found, workers=None, seconds=1.0, memory_mib=1024, conventions=DEFAULT)
    return [one.right for one in judged]


def serve(pipe: Connection) -> None:
    """math-verify, asked over a pipe: answers in `$` where they have no delimiters, its own time limits off."""
    from math_verify import parse, verify

    while True:
        gold, candidate, kind = pipe.recv()
        texts = [gold, candidate]
        for place in (0, 1) if kind == "answer" else (0,):
            if not re.search(r"\$|\\\(|\\\[|\\boxed", texts[place]):
                texts[place] = f"${texts[place]}$"
        try:
            left, right = (parse(text, parsing_timeout=None) for text in texts)
            pipe.send(bool(verify(left, right, timeout_seconds=None)) if left and right else None)
        except Exception:  # noqa: BLE001 - it may raise anything
            pipe.send(None)


def theirs(rows: list[dict[str, str]]) -> Verdicts | None:
    """math-verify's verdicts; None where it is not installed."""
    try:
        import math_verify  # noqa: F401
    except ImportError:
        print("math-verify is not installed: pip install 'math-verify[antlr4_13_2]==0.9.0'", file=sys.stderr)
        return None
    context = multiprocessing.get_context("spawn")
    found: Verdicts = []
    process = None
    for row in rows:
        if process is None:
            near, far = context.Pipe()
            process = context.Process(target=serve, args=(far,), daemon=True)
            process.start()
            near.send(("x+1", "1+x", "answer"))  # the first comparison loads grammars
            near.recv()
        near.send((row["gold"], row["candidate"], row["kind"]))
        if near.poll(LIMIT):
            found.append(near.recv())
        else:
            process.kill()
            process, _ = None, found.append(None)
    return found


def table(rows: list[dict[str, str]], verdicts: dict[str, Verdicts], by: str) -> None:
    """A line for each class, and one for all: rows, then false positives, false negatives and open ones of each."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        groups[str(row.get(by) or "other")].append(place)
    print(f"| {by} | rows | " + " | ".join(f"{name}: false + | false - | open | agree" for name in verdicts) + " |")
    print("|---|---:|" + "---:|---:|---:|---:|" * len(verdicts))
    for name, places in [*sorted(groups.items()), ("**all**", list(range(len(rows))))]:
        cells = []
        for found in verdicts.values():
            kinds = Counter((rows[place]["equivalent"], found[place]) for place in places)
            positives, negatives = kinds[False, True], kinds[True, False]
            opened = sum(count for (_, verdict), count in kinds.items() if verdict is None)
            agree = kinds[True, True] + kinds[False, False]
            cells.append(f"{positives} | {negatives} | {opened} | {100 * agree / len(places):.1f} %")
        print(f"| {name} | {len(places)} | " + " | ".join(cells) + " |")


def main() -> None:
    """Judge and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--by", default="class")
    parser.add_argument("--show", action="store_true", help="print what ours judges unlike the label")
    given = parser.parse_args()
    for file in given.files:
        rows = [pair(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if "policy" not in row]
        verdicts = {"ours": ours(rows)}
        if (found := theirs(rows)) is not None:
            verdicts["math-verify"] = found
        print(f"\n{file.name}: {len(rows)} rows\n")
        table(rows, verdicts, given.by)
        for row, verdict in zip(rows, verdicts["ours"], strict=True) if given.show else ():
            if verdict is not row["equivalent"]:
                shown = {key: row[key][-200:] for key in ("gold", "candidate")} | {"equivalent": row["equivalent"]}
                print(json.dumps(shown), "ours:", verdict)


if __name__ == "__main__":
    main()
