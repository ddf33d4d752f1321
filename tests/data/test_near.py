"""Near copies in the real problem sets, every pair of them compared with every other."""

import json
from pathlib import Path

import numpy as np
import pytest

from algorist import store
from algorist.data.dedup import NEAR, TWICE, find
from algorist.numerics import minhash, shingles, words
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
    pairs = {}
    for at in range(3):
        for row, (reason, first) in found.dropped(at).items():
            pairs[problems[at][row].id] = (reason, first)
    assert found.counts == {TWICE: 1, NEAR: 9} and found.others == 60
    # Read by eye: seven say the same in other words or another name, and two are other problems: letters of RADII and
    # of PROOF, both arranged in 60 ways, and f(f(x)) and f(f(f(x))) of an odd function.
    ways = "Determine the number of ways to arrange the letters of the word"
    assert pairs[Problem.of(f"{ways} PROOF.", "").id] == (NEAR, Problem.of(f"{ways} RADII.", "").id)
    # Every pair near enough was compared: the same by brute force over all pairs with equal numbers.
    everything = [problem for part in problems for problem in part]
    signs, numbers = words.symbols([problem.statement for problem in everything])
    of = shingles.sets(signs, 3)
    groups = minhash.buckets(numbers)
    parents = np.arange(len(everything))
    hashed = np.array([hash(problem.answer) & (2**63 - 1) for problem in everything], np.uint64)
    minhash.link(groups, of, 0.8, hashed, parents, 10**6)
    copies = {everything[at].id for at in range(len(everything)) if minhash.root(parents, at) != at}
    assert copies <= {*pairs, *(first for _, first in pairs.values())}
