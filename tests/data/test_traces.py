"""Responses that data sets bring along, in every layout that is known."""

from __future__ import annotations

from typing import Any

import pytest

from algorist.data import traces
from algorist.data.columns import Columns
from algorist.data.problems import COLUMNS
from algorist.errors import RecordError
from algorist.records import Rollout

ALL: Columns = {**COLUMNS, **traces.COLUMNS}
SKY = "<|begin_of_thought|>\n\nHm.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n\\boxed{4}\n<|end_of_solution|>"
THINK = "<think>\nHm.\n</think>\n\n\\boxed{4}"


def found(row: dict) -> tuple[str | None, list[Rollout], list[str]]:
    told = traces.told(row, ALL)
    rollouts, left_out = traces.rollouts("s", 7, row, ALL, told.texts)
    return told.statement, rollouts, [told.refused] * bool(told.refused) + left_out


def row(text: Any, **more: object) -> dict:
    return {"question": "What is 2 + 2?", "gold": "4", "completion": text, "model": "m", **more}


def test_a_row_with_a_response() -> None:
    _, (one,), _ = found(row("\\boxed{4}", correct=True, sample=3, temperature=0.6))
    assert (one.index, one.temperature, one.finish, one.sampler, one.text) == (3, 0.6, "stop", "m", "\\boxed{4}")
    assert (one.source, one.row, one.label) == ("s", 7, True)
    _, (two,), _ = found(row("\\boxed{5}", correct=False, finish_reason="length", max_tokens=16))
    assert (two.max_tokens, two.finish, two.label) == (16, "length", False)
    _, (three,), _ = found({"question": "Q", "response": "4", "correct": None})
    assert (three.sampler, three.label) == ("s", None)


def test_open_r1() -> None:
    told = {
        "problem": "What is 2 + 2?",
        "answer": "4",
        "solution": "\\boxed{4}",
        "generations": ["<think>a</think> 4", "<think>b", "<think>c</think> 5"],
        "correctness_math_verify": [True, None, False],
        "correctness_llama": [None, True, None],
        "finish_reasons": None,
        "is_reasoning_complete": [True, False, True],
        "messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}],
    }
    statement, rollouts, _ = found(told)
    assert statement is None and [one.index for one in rollouts] == [0, 1, 2]
    assert [one.label for one in rollouts] == [True, True, False]
    assert [one.finish for one in rollouts] == ["stop", "length", "stop"]
    _, rollouts, _ = found({**told, "finish_reasons": ["length", "stop", "stop"]})
    assert [one.finish for one in rollouts] == ["length", "stop", "stop"]


def test_conversations() -> None:
    share = [{"from": "human", "value": "What is 2 + 2?"}, {"from": "gpt", "value": "4"}]
    stratos = {
        "system": "Think.",
        "conversations": [{"from": "user", "value": "Q"}, {"from": "assistant", "value": SKY}],
    }
    messages = [
        {"role": "system", "content": "Think."},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "4", "reasoning_content": "Hm."},
    ]
    assert found({"conversations": share})[0] == "What is 2 + 2?"
    assert found({"conversations": share})[1][0].text == "4"
    assert found(stratos)[0] == "Q" and traces.think(found(stratos)[1][0].text) == THINK
    assert found({"messages": messages})[1][0].text == "<think>\nHm.\n</think>\n\n4"
    statement, rollouts, _ = found({"problem": "P", "messages": messages})
    assert statement is None and len(rollouts) == 1
    assert found({"messages": share[:1] + share, "answer": "4"})[2] == ["a conversation of several questions"]
    assert found({"messages": messages[:2], "answer": "4"})[:2] == ("Q", [])


def test_prompt_and_completion() -> None:
    assert found({"prompt": "Q", "completion": "4"})[1][0].text == "4"
    as_messages = {"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "4"}]}
    assert found(as_messages)[1][0].text == "4"


def test_open_thoughts_metadata() -> None:
    told = {
        "problem": "Q",
        "deepseek_reasoning": "Hm.",
        "deepseek_solution": "\\boxed{4}",
        "ground_truth_solution": "4",
    }
    assert found(told)[1][0].text == THINK


def test_a_file_of_problems_has_no_traces() -> None:
    assert found({"question": "Q", "answer": "4", "solution": "so 4"})[1:] == ([], [])
    assert found({"text": "a page of a book"})[1:] == ([], [])


def test_markers_of_thoughts() -> None:
    assert traces.think(SKY) == THINK
    assert traces.think("<|begin_of_thought|>\n\nHm, cut") == "<think>\nHm, cut"
    assert traces.think(THINK) == THINK
    _, (cut,), _ = found(row("<|begin_of_thought|>\n\nHm, cut"))
    assert cut.finish == "length"
    assert found(row("<think>Hm, cut", finish="stop"))[1][0].finish == "stop"
    one = found({"question": "Q", "completion": SKY})[1][0]
    assert traces.adapted(one, "R1", True) == traces.adapted(traces.adapted(one, "R1", True), "R2", True)
    assert (traces.adapted(one, "R1", True).sampler, traces.adapted(one, "", False).text) == ("R1", SKY)


def test_what_is_no_response_is_named() -> None:
    assert found(row(" \n"))[2] == ["empty response"]
    assert found(row(["x", "y"]))[2] == ["the response is not text"]
    assert found({"problem": "Q", "answer": "4", "generations": ["4", "", None]})[2] == ["empty response"] * 2


def test_a_number_that_is_none_is_named() -> None:
    with pytest.raises(RecordError) as error:
        found(row("x", sample="first"))
    assert str(error.value) == "s: sample of row 7 is 'first', a whole number was expected. Mend the row."


def numbered(*told: tuple[str, int, str]) -> list[Rollout]:
    return [Rollout.of("p", text, sampler, index=index) for text, index, sampler in told]


def test_samples_without_numbers_are_numbered_and_equal_texts_are_all_kept() -> None:
    kept, repeats = traces.settled({"p": 0}, numbered(("x", -1, "m"), ("x", -1, "m"), ("y", -1, "m"), ("y", -1, "n")))
    assert sorted((one.sampler, one.index) for one in kept) == [("m", 0), ("m", 1), ("m", 2), ("n", 0)]
    assert [reason for _, reason in repeats] == ["same text again"] * 2
    assert len({one.id for one in kept}) == 4


def test_two_texts_with_one_number_are_both_kept_and_one_text_with_it_once() -> None:
    kept, repeats = traces.settled({"p": 0}, numbered(("x", 0, "m"), ("y", 0, "m"), ("z", -1, "m"), ("x", 0, "m")))
    assert [(one.text, one.index) for one in kept] == [("x", 0), ("y", 1), ("z", 2)]
    assert [(one.text, reason) for one, reason in repeats] == [("x", "same rollout twice")]


def test_settled_rollouts_are_ordered_by_problem_and_stay_as_they_are() -> None:
    given = [Rollout.of(problem, f"t{index}", "m", index=index) for problem in "qp" for index in (1, 0)]
    kept, _ = traces.settled({"p": 0, "q": 1}, given)
    assert [(one.problem_id, one.index) for one in kept] == [("p", 0), ("p", 1), ("q", 0), ("q", 1)]
    assert traces.settled({"p": 0, "q": 1}, kept)[0] == kept
