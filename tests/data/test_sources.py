"""Problems and benchmarks of a recipe, from files and from the toy world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from algorist import store
from algorist.data import decontaminate, sources
from algorist.errors import RecipeError, RunError
from algorist.records import Problem
from algorist.toy import world

TOY = world.Settings(problems=30, held_out=10, fewest_steps=1, most_steps=4)
LONG = "A farmer has twelve cows and buys four more of them at the market on every single day"


def lines(path: Path, *rows: tuple[str, str]) -> str:
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows), encoding="utf-8")
    return str(path)


def written(tmp_path: Path, settings: sources.Settings) -> tuple[store.Manifest, list[Problem]]:
    sources.write_benchmarks(tmp_path / "benchmarks", settings, TOY, 1)
    benchmarks = sources.read_questions(tmp_path / "benchmarks", list(settings.benchmarks))
    made = sources.write_problems(tmp_path / "problems", settings, TOY, benchmarks, 1)
    return made, store.read(tmp_path / "problems", Problem)


def test_the_toy_world(tmp_path: Path) -> None:
    made, found = written(tmp_path, sources.Settings(ngram=40))
    held_out = sources.read_benchmarks(tmp_path / "benchmarks", ["toy"])["toy"]
    assert held_out == world.problems(1, "held out", 10, range(1, 5), TOY.distractors)
    train = world.problems(1, "train", 30, range(1, 5), TOY.distractors)
    dropped = made.dropped.get("in a benchmark", 0)
    assert found == [problem for problem in train if problem in found] and len(found) == 30 - dropped
    assert {problem.id for problem in found}.isdisjoint(problem.id for problem in held_out)
    decontaminate.require_report(tmp_path / "problems", {"toy": held_out})


def test_files_are_joined_and_freed_of_repeats_conflicts_and_benchmark_questions(tmp_path: Path) -> None:
    one = lines(tmp_path / "one.jsonl", ("What is 2 + 3?", "5"), ("What is 9 + 1?", "10"), ("What?", ""))
    two = lines(
        tmp_path / "two.jsonl",
        ("what is 2 + 3?", "5"),
        ("What is 9 + 1?", "11"),
        (f"{LONG}. How many?", "8"),
        ("What is 7 * 7?", "49"),
    )
    exam = lines(tmp_path / "exam.jsonl", (f"{LONG}. Say when.", "1"), ("What is 7 * 7?", "49"), ("Draw it.", ""))
    settings = sources.Settings(problems=(one, two), benchmarks={"exam": exam})
    made, found = written(tmp_path, settings)
    assert [problem.statement for problem in found] == ["What is 2 + 3?"]
    assert made.dropped == {
        "no answer": 1,
        "same statement twice": 1,
        "same statement, different answers": 2,
        "in a benchmark": 2,
    }
    report = decontaminate.read_report(tmp_path / "problems")
    assert report.problems == 3 and len(report.hits) == 2 and report.ngram == 13
    exams = sources.read_questions(tmp_path / "benchmarks", ["exam"])
    assert len(exams["exam"]) == 3  # a question need not be gradable to leak
    assert decontaminate.require_report(tmp_path / "problems", exams) == report


def test_a_benchmark_question_asked_twice_is_kept_once(tmp_path: Path) -> None:
    exam = lines(tmp_path / "exam.jsonl", ("What is 7 * 7?", "49"), ("what  is 7 * 7?", "49"))
    sources.write_benchmarks(tmp_path / "b", sources.Settings(benchmarks={"exam": exam}), TOY, 1)
    assert [p.answer for p in sources.read_benchmarks(tmp_path / "b", ["exam"])["exam"]] == ["49"]


def test_a_benchmark_question_whose_answers_disagree_is_not_scored_and_not_trained_on(tmp_path: Path) -> None:
    exam = lines(tmp_path / "exam.jsonl", ("Which is prime?", "A"), ("Which is prime?", "C"), ("What is 7 * 7?", "49"))
    told = lines(tmp_path / "told.jsonl", ("Which is prime?", "A"), ("What is 2 + 2?", "4"))
    settings = sources.Settings(problems=(told,), benchmarks={"exam": exam})
    made = sources.write_benchmarks(tmp_path / "b", settings, TOY, 1)
    assert made["exam"].rows == 1 and made["exam"].dropped == {"same statement, different answers": 2}
    assert [p.answer for p in sources.read_benchmarks(tmp_path / "b", ["exam"])["exam"]] == ["49"]
    asked = sources.read_questions(tmp_path / "b", ["exam"])
    assert len(asked["exam"]) == 2
    sources.write_problems(tmp_path / "p", settings, TOY, asked, 1)
    assert [p.answer for p in store.read(tmp_path / "p", Problem)] == ["4"]


def test_a_benchmark_question_without_an_answer_is_not_scored(tmp_path: Path) -> None:
    exam = lines(tmp_path / "exam.jsonl", ("What is 7 * 7?", "49"), ("Draw it.", ""))
    made = sources.write_benchmarks(tmp_path / "b", sources.Settings(benchmarks={"exam": exam}), TOY, 1)
    assert made["exam"].rows == 1 and made["exam"].dropped == {"no answer": 1}
    none = lines(tmp_path / "none.jsonl", ("Draw it.", ""))
    with pytest.raises(RecipeError, match=r"holds no problem that can be scored \(1 no answer\)"):
        sources.write_benchmarks(tmp_path / "n", sources.Settings(benchmarks={"none": none}), TOY, 1)


def test_files_and_the_toy_world_together(tmp_path: Path) -> None:
    one = lines(tmp_path / "one.jsonl", ("What is 2 + 3?", "5"))
    _, found = written(tmp_path, sources.Settings(problems=("toy", one), ngram=40))
    assert found[-1].statement == "What is 2 + 3?" and len(found) > 20


def test_columns_have_the_names_that_the_recipe_says(tmp_path: Path) -> None:
    path = tmp_path / "frage.jsonl"
    path.write_text('{"frage": "What is 2 + 3?", "antwort": "5"}\n')
    columns = {"statement": "frage", "answer": "antwort"}
    settings = sources.Settings(problems=(str(path),), benchmarks={"toy": "toy"}, columns=columns)
    assert [problem.answer for problem in written(tmp_path, settings)[1]] == ["5"]


def test_nothing_left_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", ("What is 7 * 7?", "49"), ("what is 7 * 7?", "49"))
    settings = sources.Settings(problems=(path,), benchmarks={"exam": path})
    with pytest.raises(RecipeError) as refused:
        written(tmp_path, settings)
    assert str(refused.value) == (
        "[data] problems: none of 1 is left (1 same statement twice, 1 in a benchmark). Name other files."
    )
    assert not (tmp_path / "problems" / store.MANIFEST).exists()


def test_an_empty_benchmark_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    with pytest.raises(RecipeError) as refused:
        sources.write_benchmarks(tmp_path / "b", sources.Settings(benchmarks={"exam": str(path)}), TOY, 1)
    why = "holds no problem that can be scored. Name a file of problems with answers."
    assert str(refused.value) == f'[data] benchmarks.exam = "{path}": {why}'


def test_a_changed_benchmark_unbinds_the_report(tmp_path: Path) -> None:
    written(tmp_path, sources.Settings(ngram=40))
    with pytest.raises(RunError, match="made for other questions than toy"):
        decontaminate.require_report(tmp_path / "problems", {"toy": [Problem.of("Another question?", "1")]})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"problems": ()}, "problems and benchmarks must name at least one source each."),
        ({"benchmarks": {}}, "problems and benchmarks must name at least one source each."),
        ({"ngram": 0}, "ngram must be at least 1."),
    ],
)
def test_settings_that_cannot_be(keys: dict, words: str) -> None:
    with pytest.raises(ValueError) as refused:
        sources.Settings(**keys)
    assert str(refused.value) == words
