import pytest

from algorist.data.dedup import same_answer, unique
from algorist.records import Problem


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
