import random
from pathlib import Path

import pytest

from algorist import store
from algorist.data import dedup
from algorist.data.dedup import CONFLICT, NEAR, TWICE, find, near_rollouts, same_answer, same_rollouts, unique
from algorist.data.shards import Engine
from algorist.errors import RecordError
from algorist.records import Problem
from oracles.shingles import jaccard
from oracles.words import spell

DATA = Path(__file__).parents[2].parent / "shared" / "data"
WORDS = [f"{head}{tail}" for head in ("ba", "ke", "li", "mo", "nu", "pra", "sti", "tre") for tail in "abcdefghij"]


def shards(folder: Path, *parts: list[Problem]) -> list[Path]:
    return [store.write_shard(folder / "problems", index, Problem, part) for index, part in enumerate(parts)]


def dropped(tmp_path: Path, *parts: list[Problem], near: float = 0.8) -> list[dict[int, tuple[str, str]]]:
    found = find(shards(tmp_path, *parts), tmp_path / "scratch", near)
    return [found.dropped(index) for index in range(len(parts))]


def test_the_first_of_equal_statements_is_kept_and_conflicts_go_entirely():
    first = Problem.of("What is 1+1?", "2", level="elementary")
    problems = [
        first,
        Problem.of("Q", "1"),
        Problem.of("what  is 1+1?", "2.0"),
        Problem.of("q", "2"),
        Problem.of("R", "9"),
        Problem.of("Q", "1"),
    ]
    kept, drops = unique(problems)
    assert kept == [first, problems[4]]
    assert drops == {"same statement twice": 1, "same statement, different answers": 3}


def test_nothing_dropped_is_nothing_counted():
    assert unique([Problem.of("Q", "1")]) == ([Problem.of("Q", "1")], {})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("025", "25", True),
        ("27.0", "27", True),
        ("$x+1$", "x + 1", True),
        ("\\dfrac12", "\\frac{1}{2}", True),
        ("(1,2)", "12", False),
        ("A", "B", False),
        ("x+1", "x+2", False),
    ],
)
def test_same_answer(one, other, same):
    assert same_answer(one, other) is same


def test_find_drops_over_shards_what_unique_drops_in_memory(tmp_path):
    draw = random.Random(4)
    problems = [
        Problem.of(f"Question {draw.choice('abcdefgh')}{' ' * draw.randint(1, 2)}?", draw.choice(["1", "1.0", "2"]))
        for _ in range(60)
    ]
    kept, drops = unique(problems)
    for near in (0.0, 0.8):
        gone = dropped(tmp_path / str(near), problems[:25], [], problems[25:], near=near)
        left = [one for at, one in enumerate(problems[:25]) if at not in gone[0]]
        left += [one for at, one in enumerate(problems[25:]) if at not in gone[2]]
        assert left == kept
        reasons = [reason for part in gone for reason, _ in part.values()]
        assert {reason: reasons.count(reason) for reason in set(reasons)} == drops


STORY = (
    "A farmer has 17 sheep and 4 goats. Every day he sells three of the animals at the market in town and buys "
    "one new goat from his neighbour. After how many days will the farmer have no sheep left at all?"
)


def test_a_near_copy_with_the_same_numbers_and_answer_goes(tmp_path):
    first = Problem.of(STORY, "9")
    copy = Problem.of(STORY.replace("Every day", "Each day").replace("at all", ""), "9.0")
    other_numbers = Problem.of(STORY.replace("17", "18"), "9")
    other_answer = Problem.of(STORY.replace("in town", "in the town"), "8")
    found = find(shards(tmp_path, [other_numbers, first], [copy, other_answer]), tmp_path / "scratch")
    assert found.dropped(0) == {}
    assert found.dropped(1) == {0: (NEAR, first.id)}
    assert found.counts == {NEAR: 1} and found.others == 2 and found.skipped == 0
    assert not find(shards(tmp_path, [first], [copy]), tmp_path / "scratch", near=0).counts


def test_short_statements_differ_in_their_operators(tmp_path):
    assert dropped(tmp_path, [Problem.of("2+2", "4"), Problem.of("2*2", "4"), Problem.of("$2 + 2$", "4")]) == [
        {2: (NEAR, Problem.of("2+2", "4").id)}
    ]


def test_the_first_of_a_chain_stays_wherever_the_rest_lies(tmp_path):
    chain = [STORY, STORY.replace("Every day", "Each day")]
    chain += [chain[1].replace("at all", ""), chain[1].replace("a farmer", "the farmer").replace("in town", "")]
    problems = [Problem.of(text, "9") for text in chain]
    gone = dropped(tmp_path, [problems[0]], problems[1:3], [problems[3], Problem.of(STORY.upper(), "9")])
    root = problems[0].id
    assert gone == [{}, {0: (NEAR, root), 1: (NEAR, root)}, {0: (NEAR, root), 1: (TWICE, root)}]


def test_conflicts_take_no_part_in_near_copies(tmp_path):
    copy = Problem.of(STORY.replace("Every day", "Each day"), "9")
    gone = dropped(tmp_path, [Problem.of(STORY, "9"), copy, Problem.of(STORY, "8")])
    assert gone == [{0: (CONFLICT, Problem.of(STORY, "").id), 2: (CONFLICT, Problem.of(STORY, "").id)}]


def edited(draw: random.Random, text: str, edits: int) -> str:
    """The text with some words replaced, left out or put in; numbers stay."""
    words = text.split()
    for _ in range(edits):
        at = draw.choice([place for place, word in enumerate(words) if not word.isdigit()])
        match draw.randint(0, 2):
            case 0:
                words[at] = draw.choice(WORDS)
            case 1:
                del words[at]
            case _:
                words.insert(at, draw.choice(WORDS))
    return " ".join(words)


def corpus(draw: random.Random, count: int) -> tuple[list[Problem], list[tuple[int, int, float]]]:
    """Problems, every fifth a near copy of the one before: (place, place of its original, Jaccard similarity)."""
    problems, planted = [], []
    while len(problems) < count:
        words = draw.choices(WORDS, k=draw.randint(15, 90))
        words[3], words[7] = str(draw.randint(1, 99)), str(draw.randint(1, 99))
        text, answer = " ".join(words), str(draw.randint(1, 5))
        problems.append(Problem.of(text, answer))
        if draw.random() < 0.3:
            copy = edited(draw, text, draw.randint(1, 4))
            alike = jaccard(spell(text, True), spell(copy, True), 3)
            planted.append((len(problems), len(problems) - 1, alike))
            problems.append(Problem.of(copy, answer))
    return problems, planted


def test_planted_near_copies_are_found_and_no_others(tmp_path):
    problems, planted = corpus(random.Random(8), 3000)
    parts = [problems[at : at + 1000] for at in range(0, len(problems), 1000)]
    gone = {at * 1000 + row: said for at, part in enumerate(dropped(tmp_path, *parts)) for row, said in part.items()}
    alike = {copy: origin for copy, origin, similarity in planted if similarity >= 0.8}
    at_limit = [copy for copy, _, similarity in planted if 0.8 <= similarity < 0.85]
    found = {copy for copy, origin in alike.items() if gone.get(copy) == (NEAR, problems[origin].id)}
    assert len(alike) > 200 and len(at_limit) > 50
    assert len(found) >= 0.99 * len(alike)
    assert len(found & set(at_limit)) >= 0.95 * len(at_limit)
    assert set(gone) <= set(alike)  # every pair is compared in full: precision is 1


def test_two_processes_find_the_same_and_sketches_serve_again(tmp_path):
    problems, _ = corpus(random.Random(9), 200)
    files = shards(tmp_path, problems[:100], problems[100:])
    one = find(files, tmp_path / "one")
    two = find(files, tmp_path / "two", engine=Engine(workers=2))
    assert [one.dropped(at) for at in (0, 1)] == [two.dropped(at) for at in (0, 1)] and one.counts == two.counts
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()}
    again = find(files[::-1], tmp_path / "one")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()} == before and len(before) == 2
    assert sum(again.counts.values()) == sum(one.counts.values())


def test_crowded_bands_count_what_they_leave_out(tmp_path, monkeypatch):
    monkeypatch.setattr(dedup, "_WINDOW", 2)
    problems = [Problem.of(STORY, str(answer)) for answer in ("9",)]
    problems += [Problem.of(STORY.replace("no sheep", f"{word} sheep"), str(at)) for at, word in enumerate(WORDS[:6])]
    found = find(shards(tmp_path, problems), tmp_path / "scratch")
    assert found.skipped > 0 and not found.counts and found.others == 6


def test_a_shard_without_our_ids_is_refused(tmp_path):
    path = store.write_shard(tmp_path, 0, Problem, [Problem("seven", "Q", "1")])
    with pytest.raises(RecordError) as error:
        find([path], tmp_path / "scratch")
    assert str(error.value) == (
        f"{path}: holds ids that are no content hashes. Delete the task's folder to make it again."
    )


def test_no_problems_are_nothing_found(tmp_path):
    assert dropped(tmp_path, []) == [{}]
    assert find([], tmp_path / "scratch").counts == {}


def test_same_rollouts_are_those_that_were_there_before_id_by_id():
    one = [draw % 7 for draw in range(50)]
    assert same_rollouts([one, one[:-1], [*one, 0], [], one, one[::-1], [], list(one)]) == [4, 6, 7]
    looped = [3, 4] * 100  # has the runs of a longer loop, and is not the same
    assert same_rollouts([looped, looped[:-2]]) == [] and near_rollouts([looped, looped[:-2]], 1.0) == [1]
    assert same_rollouts([]) == []


def test_near_rollouts_are_those_that_repeat_a_kept_one():
    draw = random.Random(2)
    chain = [draw.randrange(1000) for _ in range(600)]
    again = [*chain[:300], 5, *chain[300:]]
    longer = chain + [draw.randrange(1000) for _ in range(500)]
    other = [draw.randrange(1000) for _ in range(600)]
    assert near_rollouts([chain, other, again, longer, other, [], []]) == [2, 4, 6]
    assert near_rollouts([chain, again], 0) == [] and near_rollouts([chain]) == [] and near_rollouts([]) == []


def test_near_rollouts_against_all_with_all():
    draw = random.Random(3)
    rollouts = [[draw.randrange(50) for _ in range(80)] for _ in range(4)]
    rollouts += [list(draw.choice(rollouts)) for _ in range(12)]
    for row in rollouts[4:]:
        for _ in range(draw.randint(0, 4)):
            row[draw.randrange(len(row))] = 60
    for near in (0.6, 0.8, 0.95):
        kept: list[int] = []
        for at, row in enumerate(rollouts):
            if all(jaccard(rollouts[one], row, 5) < near for one in kept):
                kept.append(at)
        assert near_rollouts(rollouts, near) == [at for at in range(len(rollouts)) if at not in kept]
