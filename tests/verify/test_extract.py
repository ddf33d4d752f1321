"""Extract: which part of a model output is the answer, and that no output takes long to read."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from algorist.verify.extract import CLOSING, LONGEST_TEXT, Extraction, extract

ROLLOUTS = Path(__file__).parents[2] / "../shared/data/rollouts_real.jsonl"

BOXED = [
    (r"so it is \boxed{18}.", "18"),
    (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
    (r"first \boxed{wrong}, final \boxed{42}", "42"),
    (r"\fbox{7}", "7"),
    (r"\boxed {7}", "7"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"\boxed{\left\{ 1, 2 \right\}}", r"\left\{ 1, 2 \right\}"),
    (r"\boxed{3} and then \boxed{4", "3"),
    (r"put it in \boxed{}. It is \boxed{3}. \boxed{ }", "3"),
    (r"\boxed{3}, in other words \boxed{}", "3"),
    (r"a stray } and { and \boxed{3}", "3"),
    (r"\\boxed{\\frac{1}{2}}", r"\\frac{1}{2}"),
    (r"x \\ \boxed{1 \\}", r"1 \\"),
    (r"<think>\boxed{3}?</think> \boxed{4}", "4"),
    (r"so <think> \boxed{3}</think> It is clear.", "3"),
    (r"\boxed{4} <think>or is it \boxed{3}", "4"),
    (r"<think>first</think> \boxed{4} <think>or is it \boxed{3}", "4"),
    (r"<think>it must be \boxed{3}, wait", "3"),
    (r"<|begin_of_thought|>\boxed{1}<|end_of_thought|><|begin_of_solution|>\boxed{2}<|end_of_solution|>", "2"),
    (r"template opened it: \boxed{1}</think>\boxed{2}", "2"),
    (r"\boxed{5}. The answer is 6.", "5"),
]
PHRASES = [
    ("She makes $18\nA: 18", "18"),
    ("reasoning <<9*2=18>>\n#### 18", "18"),
    ("The answer is 5.", "5"),
    ("the final answer is: **3.5**.", "3.5"),
    ("Answer: 41 was wrong.\nAnswer: 42", "42"),
    ("Long solution. **Answer:** 42", "42"),
    ("The answer is $10,455$. I hope it is correct.", "$10,455$"),
    ("Final Answer: The final answer is $(0, 1)$. I hope it is correct.", "$(0, 1)$"),
    ("A: 18<|im_end|>\n</s>", "18"),
    ("The answer is 18<|im_end|><|im_start|>user", "18"),
    ("<think>The answer is 3.</think> The answer is 4.", "4"),
    (r"<think>\boxed{3}</think> The answer is 4.", "4"),
]
NOTHING = [
    "",
    "just 42",
    "so there are 7 and 8, which makes 15",
    r"\boxed{42",
    r"\boxed{}",
    "<think>The answer is 3, or",
    "#### Step 1\nAdd the numbers: 18",
    "A: 18 is my guess\nbut I am not sure",
    "The answer is",
    "The answer is 3." + " wait" * CLOSING,
]


@pytest.mark.parametrize(("text", "answer"), BOXED)
def test_a_box_is_the_answer(text: str, answer: str) -> None:
    assert extract(text) == Extraction(answer, "boxed")


@pytest.mark.parametrize(("text", "answer"), PHRASES)
def test_words_declare_the_answer(text: str, answer: str) -> None:
    assert extract(text) == Extraction(answer, "phrase")


@pytest.mark.parametrize("text", NOTHING)
def test_what_nothing_marks_is_no_answer(text: str) -> None:
    assert extract(text) == Extraction("", "none")


@pytest.mark.parametrize(
    "unit", ["\\boxed{", "\\boxed{1", "\\", "{", "}", "<think>", "</think>", "answer is ", " ", "\n"]
)
def test_reading_takes_linear_time(unit: str) -> None:
    text = "\\boxed{" + unit * (2 * LONGEST_TEXT // len(unit))
    started = time.perf_counter()
    extract(text)
    assert time.perf_counter() - started < 2.0


def test_only_the_end_of_an_endless_text_is_read() -> None:
    assert extract(r"\boxed{3}" + "x" * LONGEST_TEXT).found == "none"
    assert extract("x" * LONGEST_TEXT + r"\boxed{3}").answer == "3"


@pytest.mark.skipif(not ROLLOUTS.exists(), reason="the shared data is not here")
def test_real_rollouts_hold_the_answers_a_grader_found() -> None:
    with ROLLOUTS.open(encoding="utf-8") as lines:
        rollouts = [row for row in map(json.loads, lines) if row["label_source"].startswith("rule")]
    found = [extract(row["completion"]).found for row in rollouts]
    assert (found.count("boxed"), found.count("phrase"), found.count("none")) == (1425, 12, 282)
    right_in_a_box = [row["correct"] and "\\boxed" in row["completion"] for row in rollouts]
    assert {how for how, right in zip(found, right_in_a_box, strict=True) if right} == {"boxed"}
