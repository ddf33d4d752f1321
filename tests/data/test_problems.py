import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorist.data.problems import import_problems, read_benchmark, read_problems, text_of
from algorist.errors import RecipeError, RecordError
from algorist.records import Problem

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
ROWS = [
    {"question": "What is 2 + 2?", "gold": "4", "level": "Level 1", "subject": "Prealgebra"},
    {"question": "What is 3 + 3?", "gold": "6", "level": "Level 5", "subject": "Algebra"},
]


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_four_file_types_give_the_same_problems(tmp_path):
    write_lines(tmp_path / "p.jsonl", ROWS)
    (tmp_path / "p.json").write_text(json.dumps(ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "p.parquet")
    with (tmp_path / "p.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(ROWS[0]))
        table.writeheader()
        table.writerows(ROWS)
    expected = [
        Problem.of("What is 2 + 2?", "4", domain="Prealgebra", level="middle", source="p"),
        Problem.of("What is 3 + 3?", "6", domain="Algebra", level="college", source="p"),
    ]
    for name in ("p.jsonl", "p.json", "p.parquet", "p.csv"):
        assert read_problems(tmp_path / name) == (expected, {}), name


def test_rows_that_are_no_problems_are_counted_by_reason(tmp_path):
    rows = [
        {"problem": "A", "answer": "1", "solution": "so \\boxed{1}"},
        {"problem": "B", "answer": "  "},
        {"problem": " ", "answer": "3"},
        {"problem": "C", "answer": "1", "solution": "\\boxed{1} or \\boxed{2}"},
        {"problem": "D", "answer": "1", "n_boxed": 2},
        {"problem": "  a ", "answer": "1.0"},
        {"problem": "E", "answer": "1"},
        {"problem": "e", "answer": "2"},
        {"problem": "F", "answer": ["1", "2"]},
        {"problem": ["G"], "answer": [7]},
        {"problem": [{"role": "user"}], "answer": "7"},
    ]
    problems, drops = read_problems(write_lines(tmp_path / "p.jsonl", rows))
    assert [(problem.statement, problem.answer) for problem in problems] == [("A", "1"), ("G", "7")]
    assert drops == {
        "no answer": 1,
        "no statement": 1,
        "several boxed answers": 2,
        "same statement twice": 1,
        "same statement, different answers": 2,
        "the answer is not one text": 1,
        "the statement is not text": 1,
    }


def test_refused_statements_are_remembered_unless_another_row_is_sound(tmp_path):
    rows = [
        {"problem": "A", "answer": ""},
        {"problem": "B", "answer": ""},
        {"problem": "b", "answer": "2"},
        {"problem": "C", "answer": "1"},
        {"problem": "C", "answer": "2"},
    ]
    reading = import_problems(write_lines(tmp_path / "p.jsonl", rows))
    assert reading.refused == {Problem.of("a", "").id, Problem.of("c", "").id}


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"question": "Q", "answer": "2 * 9 = 18\n#### 18"}, "18"),
        ({"question": "Q", "answer": "so it is $\\boxed{\\frac{1}{2}}$."}, "\\frac{1}{2}"),
        ({"question": "Q", "solution": "so it is $\\boxed{7}$."}, "7"),
        ({"question": "Q", "answer": 27.0}, "27"),
        ({"question": "Q", "answer": ["27"]}, "27"),
    ],
)
def test_answers_are_found_where_data_sets_hide_them(tmp_path, row, answer):
    problems, drops = read_problems(write_lines(tmp_path / "p.jsonl", [row]))
    assert ([problem.answer for problem in problems], drops) == ([answer], {})


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
def test_levels(tmp_path, label, source, level):
    row = {"question": "Q", "answer": "1", "level": label, "source": source}
    problems, _ = read_problems(write_lines(tmp_path / "p.jsonl", [row]))
    assert problems[0].level == level


def test_mapped_columns_win_over_guesses(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"question": "id 7", "aufgabe": "2+2?", "answer": "4"}])
    problems, _ = read_problems(path, {"statement": "aufgabe"})
    assert problems[0].statement == "2+2?"


def test_half_a_surrogate_pair_becomes_a_mark_that_files_can_hold():
    assert text_of("cut \ud83d") == "cut \ufffd"
    assert text_of("ä𝔸") == "ä𝔸"


def test_an_empty_file_gives_no_problems(tmp_path):
    assert read_problems(write_lines(tmp_path / "p.jsonl", [])) == ([], {})


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"a": 1 "b"}', "Expecting ',' delimiter, column 9"),
        (b'{"question": "Q", "answ', "Unterminated string starting at, column 19"),
        (b"[1, 2]", "found a list"),
        (b'{"a": "\xff"}', "not UTF-8, byte 8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_an_unreadable_line_is_named(tmp_path, line, found):
    path = tmp_path / "problems.jsonl"
    path.write_bytes(b'{"question": "Q", "answer": "1"}\n\n' + line)
    with pytest.raises(RecordError) as error:
        read_problems(path)
    assert str(error.value) == f"{path}:3: not a JSON object ({found}). Mend or delete the line."


def message(path: Path, columns: dict[str, str] | None = None) -> str:
    with pytest.raises((RecipeError, RecordError)) as error:
        read_problems(path, columns)
    return f"{error.type.__name__} {error.value}".replace(str(path), path.name)


def test_messages(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"id": 1, "body": "Q", "answer": "1"}])
    assert message(tmp_path / "x.jsonl") == (
        "RecipeError x.jsonl: there is no such file. Check the path; a relative one starts where the command is run."
    )
    assert message(tmp_path / "x.txt") == (
        "RecipeError x.txt: the extension .txt does not say how to read it. "
        "Expected one of .jsonl, .json, .parquet, .csv."
    )
    assert message(path) == (
        "RecordError p.jsonl: no column holds the statement; found answer, body, id, expected statement or question "
        "or problem or prompt. Map another one: statement=<column>."
    )
    assert message(path, {"statement": "bdy"}) == (
        "RecordError p.jsonl: there is no column bdy to read the statement from. Its columns are answer, body, id."
    )
    assert message(path, {"question": "body"}) == (
        "RecipeError columns: question is not a field that can be mapped. "
        "Map one of statement, answer, solution, kind, domain, level, source."
    )
    (tmp_path / "p.parquet").write_bytes(b"not parquet")
    assert "p.parquet: not readable as Parquet (" in message(tmp_path / "p.parquet")
    (tmp_path / "p.json").write_text('[{"question": "Q"},\n x]')
    assert message(tmp_path / "p.json").startswith("RecordError p.json:2: not JSON (Expecting value, column 2).")


def test_a_benchmark_keeps_questions_that_cannot_be_graded(tmp_path):
    rows = [{"question": "A", "answer": ""}, {"question": "B", "answer": "\\boxed{1} \\boxed{2}"}, {"question": "A"}]
    path = write_lines(tmp_path / "b.jsonl", rows)
    assert [problem.statement for problem in read_benchmark(path)] == ["A", "B", "A"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_the_faults_of_math_train_are_noticed():
    problems, drops = read_problems(SHARED / "math_train.jsonl")
    assert drops == {"several boxed answers": 114, "no answer": 4, "same statement twice": 1}
    assert len(problems) == 7381
