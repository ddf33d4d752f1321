"""Near copies in the real problem sets, every pair of them compared with every other."""

import json
from pathlib import Path

import pytest

from algorist import store
from algorist.data.dedup import find
from algorist.records import Problem

DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.skipif(not DATA.exists(), reason="the real data is not here")
def test_on_real_problem_sets(tmp_path):
    shards, problems = [], []
    for index, name in enumerate(("math_train", "gsm8k_train", "gsm8k_test")):
        with open(DATA / f"{name}.jsonl", encoding="utf-8") as lines:
            part = [Problem.of(row["question"], row["answer"]) for row in map(json.loads, lines)]
        shards.append(store.write_shard(tmp_path / "problems", index, Problem, part))
        problems.append(part)
    found = find(shards, tmp_path / "scratch")
    for at in range(3):
        for row, (reason, first) in found.dropped(at).items():
            origin = next(one for part in problems for one in part if one.id == first)
            print(reason, "\n  ", repr(origin.statement), origin.answer)
            print("  ", repr(problems[at][row].statement), problems[at][row].answer)
    print(found.counts, found.others)
    assert 0
