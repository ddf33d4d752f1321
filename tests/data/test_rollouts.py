import json
from pathlib import Path

import pytest

from algorist.data.rollouts import numbered, read_rollouts
from algorist.errors import RecordError
from algorist.records import Problem, Rollout

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(text: str, **more: object) -> dict:
    return {"question": "What is 2 + 2?", "gold": "4", "completion": text, "model": "m", **more}


def test_rows_become_rollouts_problems_labels_and_sources(tmp_path):
    rows = [
        row("\\boxed{4}", correct=True, sample=3, temperature=0.6, label_source="rule", benchmark="math500"),
        row("\\boxed{5}", correct=False, label_source="rule", finish_reason="length", max_tokens=16),
        row("\\boxed{6}", correct=None),
    ]
    imported = read_rollouts(write_lines(tmp_path / "r.jsonl", rows))
    one, two, three = imported.rollouts
    assert (one.index, one.temperature, one.finish, one.sampler, one.text) == (3, 0.6, "stop", "m", "\\boxed{4}")
    assert (two.index, two.max_tokens, two.finish) == (4, 16, "length")
    assert [problem.id for problem in imported.problems] == [one.problem_id] == [Problem.of("What is 2 + 2?", "4").id]
    assert imported.labels == {one.id: True, two.id: False}
    assert imported.sources == {one.id: "math500 · rule", two.id: "rule", three.id: "r"}
    assert imported.drops == {}


def test_what_is_no_rollout_is_counted_by_reason(tmp_path):
    rows = [
        row("x"),
        row(" \n"),
        row("x", gold=""),
        row("x", gold="", question="Unknown?"),
        row("x", question=""),
        row(["x", "y"]),
        row("a", question="Q", gold="1"),
        row("b", question="Q", gold="2"),
        row("s", sample=9),
        row("s", sample=9),
    ]
    imported = read_rollouts(write_lines(tmp_path / "r.jsonl", rows), [Problem.of("what is 2 + 2?", "4")])
    assert [rollout.text for rollout in imported.rollouts] == ["x", "x", "s"]
    assert imported.drops == {
        "empty response": 1,
        "no gold answer": 1,
        "no statement and no known problem": 1,
        "the response is not text": 1,
        "same statement, different answers": 2,
        "same rollout twice": 1,
    }


def test_samples_without_numbers_are_numbered_and_equal_texts_are_all_kept(tmp_path):
    imported = read_rollouts(write_lines(tmp_path / "r.jsonl", [row("x"), row("x"), row("y"), row("y", model="n")]))
    assert [(rollout.sampler, rollout.index) for rollout in imported.rollouts] == [
        ("m", 0),
        ("m", 1),
        ("m", 2),
        ("n", 0),
    ]


def test_two_texts_with_one_number_are_both_kept(tmp_path):
    imported = read_rollouts(write_lines(tmp_path / "r.jsonl", [row("x", sample=0), row("y", sample=0), row("z")]))
    assert [(rollout.text, rollout.index) for rollout in imported.rollouts] == [("x", 0), ("y", 1), ("z", 2)]


def test_numbered_moves_another_text_and_leaves_the_same():
    taken = {
        rollout.id: rollout for rollout in [Rollout.of("p", "x", "m", seed=3, temperature=1.0, top_p=1.0, max_tokens=0)]
    }
    same, other = (Rollout.of("p", text, "m", seed=3, temperature=1.0, top_p=1.0, max_tokens=0) for text in "xy")
    assert numbered(same, taken) is same
    moved = numbered(other, taken)
    assert (moved.index, moved.seed, moved.text) == (1, 3, "y") and moved.id not in taken


def test_rows_that_name_a_known_problem_need_no_statement(tmp_path):
    problem = Problem.of("What is 2 + 2?", "4")
    rows = [{"problem_id": problem.id, "response": "4"}, {"problem_id": "another", "response": "4"}]
    imported = read_rollouts(write_lines(tmp_path / "r.jsonl", rows), [problem])
    assert [rollout.problem_id for rollout in imported.rollouts] == [problem.id]
    assert imported.rollouts[0].sampler == "r"
    assert imported.drops == {"no statement and no known problem": 1}


def test_messages(tmp_path):
    path = write_lines(tmp_path / "r.jsonl", [{"question": "Q", "gold": "1"}])
    with pytest.raises(RecordError) as error:
        read_rollouts(path)
    assert str(error.value) == (
        f"{path}: no column holds the text; found gold, question, expected completion or response or text or output. "
        "Map another one: text=<column>."
    )
    path = write_lines(tmp_path / "r.jsonl", [row("x", sample="first")])
    with pytest.raises(RecordError) as error:
        read_rollouts(path)
    assert str(error.value) == f"{path}: sample is 'first', a whole number was expected. Mend the row."


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_real_rollouts():
    imported = read_rollouts(SHARED / "rollouts_real.jsonl")
    assert len(imported.rollouts) == 5565 and imported.drops == {"no gold answer": 3}
    assert len(imported.problems) == 1416
    assert imported.labels.keys() == {rollout.id for rollout in imported.rollouts}
