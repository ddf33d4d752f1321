"""Rows become problems; what is wrong with them is named."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from algorist.data import defects
from algorist.data.columns import columns_of, text_of
from algorist.data.problems import COLUMNS, Manner, Reading, read_benchmark, read_problem, verify_golds
from algorist.errors import RecipeError, RecordError
from algorist.records import Problem
from algorist.verify.pool import Pool

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(workers=1, seconds=5.0) as one:
        yield one


def read(row: dict, **manner: object) -> Reading:
    return read_problem(row, 7, Manner("s", COLUMNS, **manner))  # type: ignore[arg-type]


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_row_becomes_a_problem() -> None:
    row = {"question": " What is 2 + 2? ", "gold": "4", "level": "Level 1", "subject": "Prealgebra", "license": "MIT"}
    labels = {"domain": "Prealgebra", "level": "middle", "source": "s", "licence": "MIT"}
    assert read(row) == Reading(Problem.of("What is 2 + 2?", "4", **labels, row=7), "")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"problem": "B", "answer": "  "}, "no answer"),
        ({"problem": "B", "answer": None, "solution": "no end"}, "no answer"),
        ({"problem": "B"}, "no answer"),
        ({"problem": "B", "answer": "notfound"}, "no answer"),
        ({"problem": "B", "answer": "See solution"}, "no answer"),
        ({"problem": "B", "answer": "N/A"}, "no answer"),
        ({"problem": " ", "answer": "3"}, "no statement"),
        ({"answer": "3"}, "no statement"),
        ({"problem": "C", "answer": "1", "solution": "\\boxed{1} or \\boxed{2}"}, "several boxed answers"),
        ({"problem": "C", "solution": "\\boxed{1} is one. Much is said here. So is the other: \\boxed{2}."},
         "several boxed answers"),
        ({"problem": "D", "answer": "1", "n_boxed": 2}, "several boxed answers"),
        ({"problem": "F", "answer": ["1", "2"]}, "several gold answers"),
        ({"problem": "F", "answer": {"value": 1}}, "the answer is not text"),
        ({"problem": "F", "answer": True}, "the answer is not text"),
        ({"problem": [{"role": "user"}], "answer": "7"}, "the statement is not text"),
        ({"problem": "Show that $x = 1$.", "answer": "1"}, "proof question"),
        ({"problem": "Let $x > 0$. Prove the inequality.", "answer": "1"}, "proof question"),
        ({"problem": "What is so?", "answer": "Proof."}, "proof question"),
        ({"problem": "What is so?", "answer": "\\text{proof}"}, "proof question"),
        ({"problem": "What is so?", "answer": "1", "question_type": "proof"}, "proof question"),
        ({"problem": "How long? ![](a.png)", "answer": "1"}, "needs an image"),
        ({"problem": "How long? <image>", "answer": "1"}, "needs an image"),
        ({"problem": "How long?", "answer": "1", "image": {"bytes": b"x", "path": None}}, "needs an image"),
        ({"problem": "How long is AB in the figure?", "answer": "1"}, "speaks of a figure that is not there"),
        ({"problem": "As shown in the diagram, AB = 2.", "answer": "1"}, "speaks of a figure that is not there"),
        ({"problem": "Which of the following is prime?", "answer": "C"}, "an option letter without options"),
        ({"problem": "How long?", "answer": "1", "problem_is_valid": "Incomplete"}, "the source calls it invalid"),
    ],
)  # fmt: skip
def test_what_is_no_problem_has_a_reason(row: dict, reason: str) -> None:
    assert read(row).refused == reason


@pytest.mark.parametrize(
    ("row", "noted"),
    [
        ({"problem": "Find $x$ and show that it is alone.", "answer": "1"}, ("asks for a proof as well",)),
        ({"problem": "Show that $x>0$. What is $x$?", "answer": "1"}, ("asks for a proof as well",)),
        ({"problem": "Find AB in the figure. [asy]draw((0,0)--(1,1));[/asy]", "answer": "1"}, ("a drawing in code",)),
        ({"problem": "Find all x.", "answer": "1, 2", "is_multiple_answer": True}, ("several answers in one gold",)),
        ({"problem": "Which day?", "answer": "\\text{Friday}"}, ("answer in words",)),
    ],
)
def test_what_is_only_noted(row: dict, noted: tuple[str, ...]) -> None:
    assert (read(row).refused, read(row).noted) == ("", noted)
    assert read(row, refuse=frozenset(noted)).refused == noted[0]


@pytest.mark.parametrize(
    ("statement", "answer"),
    [
        ("Show your answer as a fraction.", "\\frac{1}{2}"),
        ("It can be shown that $x > 0$. Write $x$ to three significant figures.", "1.00"),
        ("The approved budget is 3. What is proved by it?", "3"),
        ("He has 960 pictures. How long will it take to process all of the pictures?", "1"),
        ("A line segment in the drawing of a park is 4 inches long.", "3200"),
        ("A figure skater turns. Which way?", "12"),
        ("Find the perimeter of figure $ABCDEFG$.", "15"),
        ("The table below gives it. How many?", "15"),
        ("As is shown in the diagram: \\begin{array}{c} 1 \\\\ 1 \\end{array} What follows?", "2"),
        ("What is the 100th letter in the pattern ABCABC...?", "A"),
        ("How many integers are there?", "\\text{none}"),
    ],
)
def test_sound_questions_are_not_refused(statement: str, answer: str) -> None:
    assert read({"problem": statement, "answer": answer}).refused == ""


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"question": "Q", "answer": "2 * 9 = 18\n#### 18"}, "18"),
        ({"question": "Q", "answer": "so it is $\\boxed{\\frac{1}{2}}$."}, "\\frac{1}{2}"),
        ({"question": "Q", "solution": "so it is $\\boxed{7}$."}, "7"),
        ({"question": "Q", "answer": 27.0}, "27"),
        ({"question": "Q", "answer": ["27"]}, "27"),
        ({"question": "Q", "answer": ["27", "27"]}, "27"),
        (
            {"question": "Q", "answer": "025", "solution": "So \\boxed{025}. Another way gives it, too: \\boxed{25}."},
            "025",
        ),
    ],
)
def test_answers_are_found_where_data_sets_hide_them(row: dict, answer: str) -> None:
    assert (read(row).problem.answer, read(row).refused) == (answer, "")


@pytest.mark.parametrize(
    ("row", "statement", "answer"),
    [
        ({"options": ["A)1", "B)2"], "answer": "B"}, "Which?\nA)1\nB)2", "B"),
        ({"options": ["one", "two"], "answer": "(B)"}, "Which?\nA) one\nB) two", "(B)"),
        ({"choices": ["9", "10", "11"], "answer": 2}, "Which?\nA) 9\nB) 10\nC) 11", "C"),
        ({"choices": {"label": ["A", "B"], "text": ["x", "y"]}, "answer": "A"}, "Which?\nA) x\nB) y", "A"),
        ({"options": {"A": "x", "B": "y"}, "answer": "\\text{B}"}, "Which?\nA) x\nB) y", "\\text{B}"),
    ],
)
def test_options_join_the_statement(row: dict, statement: str, answer: str) -> None:
    found = read({"question": "Which?", **row})
    assert (found.problem.statement, found.problem.answer, found.problem.kind) == (statement, answer, "choice")


def test_options_inside_the_statement_are_not_repeated() -> None:
    told = "Which?  $\\textbf{(A) }1 \\qquad \\textbf{(B) }2$"
    found = read({"question": told, "options": ["1", "2"], "answer": "B"})
    assert (found.problem.statement, found.problem.kind) == (told, "choice")
    assert read({"question": "Which is it? (a) one (b) two", "answer": "B"}).problem.kind == "choice"
    assert read({"question": "What is it?", "answer": "4", "kind": "number"}).problem.kind == "number"


@pytest.mark.parametrize(
    ("label", "source", "level"),
    [
        ("Level 2", "math", "middle"),
        ("Level 3", "math", "high school"),
        ("Level ?", "math", ""),
        ("High School", "x", "high school"),
        ("", "gsm8k/train", "elementary"),
        ("", "x", ""),
    ],
)
def test_levels(label: str, source: str, level: str) -> None:
    row = {"question": "Q", "answer": "1", "level": label, "source": source}
    assert read(row).problem.level == level


def test_levels_and_domains_of_a_source() -> None:
    manner = {"levels": {"olympiads": "graduate", "*": "college"}, "domains": {"alg": "algebra"}, "licence": "MIT"}
    first = read(
        {"question": "Q", "answer": "1", "level": "Olympiads", "type": "Alg", "licence": "x"}, **manner
    ).problem
    assert (first.level, first.domain, first.licence) == ("graduate", "algebra", "MIT")
    second = read({"question": "Q", "answer": "1", "type": "geometry"}, **manner).problem
    assert (second.level, second.domain) == ("college", "geometry")


def test_instructions_around_the_question_are_taken_off() -> None:
    bare = Problem.of("What is $2 + 2$? Round down.", "4").id
    for told in (
        "Return your final response within \\boxed{}. What is $2 + 2$? Round down.",
        "What is $2 + 2$? Round down.\nPlease reason step by step, and put your final answer within \\boxed{}.",
        "What is $2 + 2$? Round down. Let's think step by step and output the final answer within \\boxed{}.",
    ):
        assert read({"question": told, "answer": "4"}).problem.id == bare
    kept = "Give $x$ in the form \\boxed{a}{b} of the puzzle."
    assert read({"question": kept, "answer": "4"}).problem.statement == kept


def test_golds_are_held_against_themselves(pool: Pool) -> None:
    golds = [
        "12",
        "\\frac{1}{2}",
        "x=5",
        "\\text{even}",
        "B",
        "(1, 2]",
        "\\begin{pmatrix}1\\\\2\\end{pmatrix}",
        "\\frac{1}{2",
    ]
    golds += ["\\begin{pmatrix}2\\-\\frac{1}{2}\\end{pmatrix}", "2007+\\frac{\\}{p}i2", "the set of all primes"]
    readings = [Reading(Problem.of(f"Q{at}", gold), "") for at, gold in enumerate(golds)]
    refused = [one.problem.answer for one in verify_golds(readings, pool, frozenset(defects.REFUSED)) if one.refused]
    assert refused == golds[7:]
    noted = verify_golds(readings, pool, frozenset())
    assert not any(one.refused for one in noted)
    assert {reason for one in noted for reason in one.noted} == {"gold unreadable"}


def test_the_columns_of_a_row_decide_and_nested_ones_are_found() -> None:
    head = [{"question": "id 7", "extra": {"text": "2+2?", "level": {"name": "Level 1"}}, "answer": "4"}]
    columns = columns_of("p", head, COLUMNS, {"statement": "extra.text"}, {"level": "extra.level.name", "kind": "none"})
    found = read_problem(head[0], 0, Manner("p", columns)).problem
    assert (found.statement, found.level) == ("2+2?", "middle")
    assert read({"question": None, "problem": "Q", "answer": "1"}).problem.statement == "Q"


def test_messages(tmp_path: Path) -> None:
    head = [{"id": 1, "body": "Q", "answer": "1"}]
    with pytest.raises(RecordError) as missing:
        columns_of("p.jsonl", head, COLUMNS, {"statement": "bdy"})
    assert str(missing.value) == (
        "p.jsonl: there is no column bdy to read the statement from. Its columns are answer, body, id."
    )
    with pytest.raises(RecipeError) as unknown:
        columns_of("p.jsonl", head, COLUMNS, {"question": "body"})
    assert str(unknown.value) == (
        "columns: question is not a field that can be mapped. Map one of statement, answer, solution, kind, domain, "
        "level, source, licence, options, image."
    )
    path = write_lines(tmp_path / "p.jsonl", head)
    with pytest.raises(RecordError) as nothing:
        read_benchmark(path)
    assert str(nothing.value) == (
        f"{path}: no column holds the statement; found answer, body, id, expected statement or question or problem or "
        'prompt. Map another one: columns = { statement = "<column>" }.'
    )


def test_a_benchmark_keeps_questions_that_cannot_be_graded(tmp_path: Path) -> None:
    rows = [{"question": "A", "answer": ""}, {"question": "B", "answer": "\\boxed{1} \\boxed{2}"}, {"question": "A"}]
    path = write_lines(tmp_path / "b.jsonl", rows)
    assert [problem.statement for problem in read_benchmark(path)] == ["A", "B", "A"]
    assert read_benchmark(write_lines(tmp_path / "empty.jsonl", [])) == []
    told = write_lines(tmp_path / "c.jsonl", [{"frage": "A", "antwort": "1"}])
    assert read_benchmark(told, {"statement": "frage", "answer": "antwort"})[0].answer == "1"


def test_half_a_surrogate_pair_becomes_a_mark_that_files_can_hold() -> None:
    assert text_of("cut \ud83d") == "cut \ufffd"
    assert text_of("ä𝔸") == "ä𝔸"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_the_faults_of_math_train_are_noticed(pool: Pool) -> None:
    rows = map(json.loads, (SHARED / "math_train.jsonl").read_text(encoding="utf-8").splitlines())
    readings = [read_problem(row, number, Manner("math", COLUMNS)) for number, row in enumerate(rows)]
    found = Counter(one.refused for one in readings if one.refused)
    assert found == {"several boxed answers": 114, "no answer": 4, "speaks of a figure that is not there": 1}
    assert sum("a drawing in code" in one.noted for one in readings) == 692
    broken = [one for one in readings if "\\begin{pmatrix}" in one.problem.answer]
    checked = verify_golds(broken, pool, frozenset(defects.REFUSED))
    assert Counter(one.refused for one in checked)["gold unreadable"] == 7
