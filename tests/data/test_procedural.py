"""Problems that reasoning-gym makes up."""

from __future__ import annotations

import pytest

from algorist.data import procedural
from algorist.data.readers import read_rows
from algorist.errors import RecipeError


def test_an_address_always_gives_the_same_problems() -> None:
    pytest.importorskip("reasoning_gym")
    rows = list(read_rows("gym://leg_counting?size=7&seed=3"))
    assert len(rows) == 7 and rows == list(read_rows("gym://leg_counting?size=7&seed=3"))
    assert rows != list(read_rows("gym://leg_counting?size=7&seed=4"))
    first = rows[0]
    assert first["answer"].isdecimal() and "legs" in first["statement"]
    assert (first["domain"], first["licence"]) == ("arithmetic", "Apache-2.0")


def test_settings_of_a_task_are_passed_on() -> None:
    pytest.importorskip("reasoning_gym")
    rows = list(read_rows("gym://chain_sum?size=5&seed=1&min_terms=2&max_terms=2&min_digits=1&max_digits=1"))
    assert all(row["metadata"]["difficulty"]["num_terms"] == (2, 2) for row in rows)


def test_messages() -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(RecipeError) as refused:
        list(read_rows("gym://leg_countin?size=5"))
    assert str(refused.value) == (
        "gym://leg_countin?size=5: leg_countin is no task of reasoning-gym. Did you mean leg_counting?"
    )
    with pytest.raises(RecipeError, match=r"its settings do not fit \(.*legs.*\)\. Write size, seed and what the task"):
        list(read_rows("gym://leg_counting?legs=5"))


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(RecipeError, match=r"reasoning-gym is not here. Install the extra with pip install '\.\[gym\]'"):
        list(procedural.rows("gym://leg_counting"))
