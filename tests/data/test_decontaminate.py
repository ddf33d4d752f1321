import json
import random
import time

import pytest

from algorist.data.decontaminate import (
    benchmark_id,
    decontaminate,
    read_report,
    require_report,
    write_report,
)
from algorist.errors import RecordError, RunError
from algorist.records import Problem

LONG = "A train leaves the station at noon and travels north at sixty miles per hour for three hours."
BENCHMARKS = {"trains": [Problem.of(LONG, "180")], "sums": [Problem.of("What is $5 - 3$?", "2")]}


def kept(statement: str, ngram: int = 13) -> bool:
    return bool(decontaminate([Problem.of(statement, "1")], BENCHMARKS, ngram)[0])


def test_shared_words_are_found_whatever_surrounds_them():
    assert not kept("Read this. A train leaves the STATION, at noon, and travels north at sixty miles an hour!")
    assert kept("A train leaves the station at noon and travels south at sixty miles per hour for two hours.")
    assert not kept("A train leaves the station at noon and travels south.", ngram=8)


def test_short_statements_are_compared_whole():
    assert not kept("what is 5-3")
    assert kept("What is 5 + 3?")
    assert kept("Tell me, what is 5 - 3, and why?")
    assert not kept("Tell me, what is 5 + 3, and why?", ngram=4)


def test_the_report_names_benchmarks_and_hits():
    hit, clean = Problem.of("Now: " + LONG, "180"), Problem.of("What is 7 - 3?", "4")
    problems, report = decontaminate([hit, clean], BENCHMARKS)
    assert problems == [clean]
    assert report.ngram == 13 and report.problems == 2
    assert report.benchmarks == {name: benchmark_id(questions) for name, questions in BENCHMARKS.items()}
    (found,) = report.hits
    assert (found.problem_id, found.benchmark, found.benchmark_problem_id) == (
        hit.id,
        "trains",
        BENCHMARKS["trains"][0].id,
    )
    assert found.words == LONG.lower().rstrip(".")


def test_against_an_obvious_double_loop():
    draw = random.Random(5)
    sentences = [" ".join(draw.choices("abcd", k=draw.randint(2, 14))) for _ in range(160)]
    problems = [Problem.of(sentence, "1") for sentence in sentences[:120]]
    questions = [Problem.of(sentence, "1") for sentence in sentences[120:]]
    for n in (3, 5, 8):
        expected = set()
        for problem in problems:
            for question in questions:
                one, other = problem.statement.split(), question.statement.split()
                runs = [other[at : at + n] for at in range(len(other) - n + 1)]
                shared = any(one[at : at + n] in runs for at in range(len(one) - n + 1))
                if shared or (one == other and len(one) < n):
                    expected.add((problem.id, question.id))
        clean, report = decontaminate(problems, {"b": questions}, n)
        assert {(hit.problem_id, hit.benchmark_problem_id) for hit in report.hits} == expected
        assert clean == [problem for problem in problems if problem.id not in {one for one, _ in expected}]
        assert expected


def test_the_benchmark_id_follows_the_questions_and_nothing_else():
    one, two = Problem.of("A", "1"), Problem.of("B", "2")
    assert benchmark_id([one, two]) == benchmark_id([two, one, Problem.of("a", "9")])
    assert benchmark_id([one]) != benchmark_id([one, two])


def test_a_report_counts_for_the_same_questions_only(tmp_path):
    _, report = decontaminate([Problem.of(LONG, "1")], BENCHMARKS)
    path = write_report(tmp_path, report)
    assert read_report(tmp_path) == report
    assert require_report(tmp_path, {"sums under another name": BENCHMARKS["sums"]}) == report
    changed = {**BENCHMARKS, "sums": [*BENCHMARKS["sums"], Problem.of("One more?", "1")]}
    with pytest.raises(RunError) as error:
        require_report(tmp_path, changed)
    assert str(error.value) == (
        f"{path}: made for other questions than sums now holds (it covers trains, sums). "
        "Gather the data again against the present files."
    )


def test_data_without_a_report_is_refused(tmp_path):
    with pytest.raises(RunError) as error:
        require_report(tmp_path, BENCHMARKS)
    assert str(error.value) == (
        f"{tmp_path}: there is no decontamination report, so nothing may be trained on this data. "
        "Gather it against trains, sums."
    )


def test_a_broken_report_is_no_report(tmp_path):
    (tmp_path / "decontamination.json").write_text(json.dumps({"ngram": 13}))
    with pytest.raises(RecordError, match=r"not a decontamination report .* Delete the folder and run again\."):
        require_report(tmp_path, BENCHMARKS)


def test_fifteen_thousand_problems_take_seconds():
    draw = random.Random(1)
    words = [f"w{number}" for number in range(3000)]
    problems = [Problem.of(" ".join(draw.choices(words, k=60)), "1") for _ in range(15_000)]
    start = time.perf_counter()
    clean, _ = decontaminate(problems, {"b": problems[:3000]})
    assert time.perf_counter() - start < 10  # 1 s when nothing else runs
    assert len(clean) == 12_000
