"""Extract: which part of a model output is the answer, and that no output takes long to read."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from algorist.verify.extract import CLOSING, DIFFERENT_BOXES, LONGEST_TEXT, Extraction, answer_in, extract

ROLLOUTS = Path(__file__).parents[2] / "../shared/data/rollouts_real.jsonl"

BOXED = [
    (r"so it is \boxed{18}.", "18"),
    (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
    (r"first \boxed{wrong}, final \boxed{42}", "42"),
    (r"\fbox{7}", "7"),
    (r"\framebox[2cm]{7}", "7"),
    (r"\boxed {7}", "7"),
    (r"so $\boxed 5$", "5"),
    (r"so $\boxed \frac{1}{2}$", r"\frac{1}{2}"),
    (r"so boxed{5}", "5"),
    ("so \x08oxed{5}", "5"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"\boxed{\left\{ 1, 2 \right\}}", r"\left\{ 1, 2 \right\}"),
    (r"\boxed{3} and then \boxed{4", "3"),
    (r"put it in \boxed{}. It is \boxed{3}. \boxed{ }", "3"),
    (r"\boxed{3}, in other words \boxed{}", "3"),
    (r"a stray } and { and \boxed{3}", "3"),
    (r"\\boxed{\\frac{1}{2}}", r"\\frac{1}{2}"),
    (r"x \\ \boxed{1 \\}", r"1 \\"),
    (r"\boxed{5}. The answer is 6.", "5"),
    (r"\boxed{5}. The final answer is in the box.", "5"),
    ("\\boxed{4}<|im_end|>\n<|im_start|>user\nAnd this?<|im_end|>\\boxed{7}", "4"),
    ("\\boxed{4}\n\nProblem: find x.\n\nSolution: \\boxed{7}", "4"),
    ("Let me see.\n\nProblem: find x.\n\nSolution: \\boxed{7}", "7"),
]
SEVERAL_BOXES = [
    (r"\boxed{1} and \boxed{2}", "1, 2"),
    (r"$\boxed{k = 45} \quad \text{and} \quad \boxed{n = 2}$", "k = 45, n = 2"),
    (r"$y_1 = \boxed{A}$ and $y_2 = \boxed{B}$", "A, B"),
    (r"\boxed{1} papers and \boxed{2} bins", "1, 2"),
    (r"\(\boxed{1}\), \(\boxed{2}\), or \(\boxed{3}\).", "1, 2, 3"),
    ("\\[\\boxed{1}\\]\n\n\\[\\boxed{2}\\]", "1, 2"),
    ("1. \\boxed{3}\n2. \\boxed{4}", "3, 4"),
    (r"\boxed{5} and \boxed{5}", "5"),
    (r"\boxed{\frac{1}{3}} \approx \boxed{0.333}", r"\frac{1}{3} \approx 0.333"),
    (r"\boxed{9} \boxed{9} \boxed{9} \boxed{42}", "42"),
    (r"Step 1 gives \boxed{1}. Step 2 gives \boxed{2}.", "2"),
    (r"\boxed{5} = \boxed{x}", "x"),
    (r"It is \boxed{1}. Or \boxed{2}.", "2"),
    (r"\boxed{2}x + \boxed{3}", "3"),
    ("\\boxed{1}\n\nSecond case \\boxed{2}", "2"),
    (r"\boxed{1}, no, \boxed{2}", "2"),
    (r"\boxed{10} and then \boxed{42}", "42"),
    (r"\boxed{1} is what they all ask us for here and \boxed{2}", "2"),
]
TAGGED = [
    ("<answer>42</answer> Some text <answer>100</answer>", "42"),
    (r"<answer>it is \boxed{84}</answer>", "84"),
    (r"\boxed{3} <answer>The answer is $4$.</answer>", "4"),
    ("<answer></answer><answer>5</answer>", "5"),
    ("I put it into <answer> tags: <answer>5</answer>", "5"),
    ("<think><answer>3</answer></think><answer>4</answer>", "4"),
]
THOUGHTS = [
    (r"<think>\boxed{3}?</think> \boxed{4}", "4", "boxed"),
    (r"\boxed{4} <think>or is it \boxed{3}", "4", "boxed"),
    (r"\boxed{4} <think>or is it \boxed{3}</think>", "4", "boxed"),
    (r"<think>first</think> \boxed{4} <think>or is it \boxed{3}", "4", "boxed"),
    (r"<|begin_of_thought|>\boxed{1}<|end_of_thought|><|begin_of_solution|>\boxed{2}<|end_of_solution|>", "2", "boxed"),
    (r"template opened it: \boxed{1}</think>\boxed{2}", "2", "boxed"),
    (r"<think>I close it with <think>, \boxed{1}</think>\boxed{2}", "2", "boxed"),
    (r"[THINK]\boxed{1}[/THINK]\boxed{2}", "2", "boxed"),
    (r"◁think▷\boxed{1}◁/think▷\boxed{2}", "2", "boxed"),
    (r"<seed:think>\boxed{1}</seed:think>\boxed{2}", "2", "boxed"),
    (r"<reasoning>\boxed{1}</reasoning>\boxed{2}", "2", "boxed"),
    (r"<|channel|>analysis<|message|>\boxed{1}<|end|><|channel|>final<|message|>\boxed{2}<|return|>", "2", "boxed"),
    (r"<|channel|>analysis<|message|>\boxed{1}<|end|><|channel|>final<|message|>2<|return|>", "2", "bare"),
    ("<think>The answer is 3.</think> The answer is 4.", "4", "phrase"),
    (r"<think>\boxed{3}</think> The answer is 4.", "4", "phrase"),
    (r"so <think> \boxed{3}</think> It is clear.", "", "thought only"),
    (r"<think>The answer is 3.</think>", "", "thought only"),
    (r"\boxed{3} is what I thought</think> It is clear.", "", "thought only"),
    (r"\boxed{3} <think>hm</think> I go on</think> It is clear.", "", "thought only"),
    (r"<|channel|>analysis<|message|>\boxed{1}<|end|>", "", "unfinished thought"),
    (r"<think>it must be \boxed{3}, wait", "", "unfinished thought"),
    (r"<think>hm</think> <think>\boxed{3}", "", "unfinished thought"),
    (r"<think>hm</think> It is clear to me.", "", "no answer"),
]
PHRASES = [
    ("She makes $18\nA: 18", "18"),
    ("reasoning <<9*2=18>>\n#### 18", "18"),
    ("The total is #### 1,234", "1,234"),
    ("The answer is 5.", "5"),
    ("the final answer is: **3.5**.", "3.5"),
    ("Answer: 41 was wrong.\nAnswer: 42", "42"),
    ("Answer: D\nConfidence: 100%", "D"),
    ("Long solution. **Answer:** 42", "42"),
    ("The answer is $10,455$. I hope it is correct.", "10,455"),
    ("Final Answer: The final answer is $(0, 1)$. I hope it is correct.", "(0, 1)"),
    (r"It is \boxed{255} so far. Final Answer: The final answer is $10,455$. I hope it is correct.", "10,455"),
    ("A: 18<|im_end|>\n</s>", "18"),
    ("The answer is 18<|im_end|><|im_start|>user", "18"),
    ("The answer is $a. b$.", "a. b"),
    ("The answer is 90 degrees.", "90 degrees"),
    ("The answer is 42 because geometry proves it", "42"),
    ("**Final Answer**\n\n$$x^2$$", "x^2"),
    ("So the final answer is\n\\[\n\\frac{1}{2}\n\\]", r"\frac{1}{2}"),
    (r"Answer \[ 9 \]", "9"),
    ("ANSWER: B", "B"),
    ("The correct option is (C).", "(C)"),
    ("Solution: Choice_A", "A"),
    ("Therefore, the correct answer is Choice_D: 2 + e^-4.", "D"),
    ("Answer: Jane started growing Sphere 3 hours ago.", "3"),
    ("Answer: The volume of $ABCDEFGH$ is 120.", "120"),
    ("Answer: no solution", "no solution"),
    ("I'm confident that 44 is the correct answer.", "44"),
    ("所以最终答案是18。", "18"),
    ("答案：$\\frac{1}{2}$", r"\frac{1}{2}"),
    ("したがって、答えは18です。", "18"),
    ("정답은 18입니다.", "18"),
    ("La réponse finale est $2{,}5$.", "2{,}5"),
    ("Die Antwort lautet 18.", "18"),
    ("Antwort: 18", "18"),
    ("La respuesta es 18.", "18"),
    ("La risposta è 18.", "18"),
    ("A resposta é 18.", "18"),
    ("Ответ: 18", "18"),
    ("Odpowiedź: 18", "18"),
]
CONCLUSIONS = [
    ("P(A) = 2/3 Therefore, the probability that Alice wins the game is 2/3.", "2/3"),
    ("The result is $3$", "3"),
    ("There were 9. Therefore, there are 12 distinct sequences that meet the three conditions.", "12"),
    ("It is 5. So, in conclusion, the 8th grade should have 10 representatives.", "10"),
    (r"In conclusion, we have that:" + "\n\n" + r"$$\tan A = 2$$", r"\tan A = 2"),
    (r"It is \[x = 2.\] So it increases by 100%.", "100%"),
    ("Add 3 and 6. Counting these, there are 9 elements.\n\nI think that's the answer.", "9"),
    ("Some work. Therefore x = 3 or x = 5.", "x = 3 or x = 5"),
    ("So, yes, the ratio is indeed 150/200, which simplifies to 3/4.", "3/4"),
    ("First 64, therefore 36", "36"),
    ("1. Compute 5*6 = 30.\n2. **The area is 30 square units.**", "30"),
    ("The angle is [90].", "90"),
    (r"[$\sqrt{4}$]", r"\sqrt{4}"),
    ("First try [30], second try [45].", "45"),
    ("弗兰克有26个袋子。因此，弗兰克一共有**858颗**糖果。", "858"),
    ("Donc, le nombre de pommes est 12.", "12"),
    ("Por lo tanto, el resultado es 12.", "12"),
]
BARE = [
    "42",
    "x = 3",
    "$10^3$",
    "3+2",
    "[0,1]",
    "[2, 5)",
    "Monday",
    "(D)",
    r"$\frac{\frac{1}{2}}{\frac{3}{4}} = \frac{2}{3}$",
]
NOTHING = [
    "",
    " ",
    "...",
    "just 42",
    "plain 42",
    "no idea",
    "just a number 42",
    "so there are 7 and 8, which makes 15",
    r"\boxed{42",
    r"the answer is \boxed{42",
    r"\boxed{}",
    "#### Step 1\nAdd the numbers: 18",
    "A: 18 is my guess\nbut I am not sure",
    "The answer is",
    "The answer is not 5.",
    "I hope the answer is correct.",
    "We express the answer in that form even if c = 0.",
    "We give the answer for what happens if c is 5.",
    r"Therefore, the sum is \( 3 +",
    "Add 3 and 6. So there are 12",
    "The answer is 3." + " wait" * CLOSING,
]
GIVEN = [
    ("42", "42", "bare"),
    ("5 meters", "5 meters", "bare"),
    ("no solution", "no solution", "bare"),
    ("x=1 or x=2", "x=1 or x=2", "bare"),
    ("12 yuan per kg", "12 yuan per kg", "bare"),
    ("n is a multiple of 3", "n is a multiple of 3", "bare"),
    ("$1$ and $2$ and $3$", "$1$ and $2$ and $3$", "bare"),
    ("$21,16$ or $11$", "$21,16$ or $11$", "bare"),
    ("$28$ percent", "$28$ percent", "bare"),
    (r"$\frac{1}{3} \text{meters}$", r"$\frac{1}{3} \text{meters}$", "bare"),
    (r"$\boxed{28 pct}", "28 pct", "boxed"),
    (r"x \in \boxed{\{-1\} \cup [0,7)}.", r"\{-1\} \cup [0,7)", "boxed"),
    (r"\\boxed{W(n) = 1 \\text{ and } W(n) = -1", r"W(n) = 1 \\text{ and } W(n) = -1", "boxed"),
    (r"<answer>\boxed{84}</answer>", "84", "tagged"),
    (r"Answer \[ 9 \]", "9", "phrase"),
    (r"Therefore $x \geq 5$ is the solution.", r"x \geq 5", "phrase"),
    ("Final Answer: The largest $n$ is 34.", "34", "phrase"),
    (r"We find that $x \lt 3$.", r"x \lt 3", "conclusion"),
    ("the number is not 10 which is 1,000.99€", "1,000.99€", "conclusion"),
    ("Here is a zero matrix: $ [0] $", "[0]", "conclusion"),
    ("Special matrix: $ [0] $", "[0]", "bare"),
    ("The function is odd.", "The function is odd.", "bare"),
    ("", "", "no answer"),
]


@pytest.mark.parametrize(("text", "answer"), BOXED + SEVERAL_BOXES)
def test_the_last_boxes_are_the_answer(text: str, answer: str) -> None:
    assert extract(text) == Extraction(answer, "boxed")


@pytest.mark.parametrize(("text", "answer"), TAGGED)
def test_a_tag_is_the_answer(text: str, answer: str) -> None:
    assert extract(text) == Extraction(answer, "tagged")


@pytest.mark.parametrize(("text", "answer", "found"), THOUGHTS)
def test_only_what_is_outside_thoughts_counts(text: str, answer: str, found: str) -> None:
    assert extract(text) == Extraction(answer, found)


@pytest.mark.parametrize(("text", "answer"), PHRASES)
def test_words_declare_the_answer(text: str, answer: str) -> None:
    assert extract(text) == Extraction(answer, "phrase")


@pytest.mark.parametrize(("text", "answer"), CONCLUSIONS)
def test_the_last_sentence_concludes_the_answer(text: str, answer: str) -> None:
    assert extract(text) == Extraction(answer, "conclusion")


@pytest.mark.parametrize("text", BARE)
def test_a_short_text_is_the_answer_itself(text: str) -> None:
    assert extract(text) == Extraction(text, "bare")


@pytest.mark.parametrize("text", NOTHING)
def test_what_nothing_marks_is_no_answer(text: str) -> None:
    assert extract(text) == Extraction("", "no answer")
    assert not extract(text).answer


@pytest.mark.parametrize(("text", "answer", "found"), GIVEN)
def test_a_given_answer_is_taken_out_of_its_wrapping(text: str, answer: str, found: str) -> None:
    assert answer_in(text) == Extraction(answer, found)


def test_a_list_of_guesses_is_no_answer() -> None:
    guesses = [f"Perhaps it is \\boxed{{{number}}}." for number in range(DIFFERENT_BOXES + 1)]
    assert extract("\n\n".join(guesses)) == Extraction("", "too many boxes")
    assert extract("\n\n".join(guesses[1:])).answer == str(DIFFERENT_BOXES)
    assert extract("\n\n".join(guesses[-1:] * 50)).answer == str(DIFFERENT_BOXES)


UNITS = ["\\boxed{", "\\boxed{1", "\\boxed{}", "\\boxed{1} ", "\\boxed", "oxed", "\\", "{", "}", "<think>", "</think>"]
UNITS += ["<think></think>", "<answer>", "<answer></answer>", "<|im_end|>", "**", "answer is ", "####", "$", "\\(", "["]
UNITS += ["is ", "=", "1 ", "a. ", "therefore 1. ", "I think that's the answer. ", "\n\nProblem:", " ", "\n", "答案是"]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("start", ["", "\\boxed{", "<answer>"])
def test_reading_takes_linear_time(unit: str, start: str) -> None:
    text = start + unit * (LONGEST_TEXT // len(unit))
    for read in (extract, answer_in):
        started = time.perf_counter()
        read(text)
        assert time.perf_counter() - started < 1.5


def test_only_the_end_of_an_endless_text_is_read() -> None:
    assert not extract(r"\boxed{3}" + "x" * LONGEST_TEXT).answer
    assert extract("x" * LONGEST_TEXT + r"\boxed{3}").answer == "3"
    assert extract("<think>" + "x" * LONGEST_TEXT + r"\boxed{3}").found == "unfinished thought"


@pytest.mark.skipif(not ROLLOUTS.exists(), reason="the shared data is not here")
def test_real_rollouts_hold_the_answers_a_grader_found() -> None:
    with ROLLOUTS.open(encoding="utf-8") as lines:
        rollouts = [json.loads(line) for line in lines]
    ruled = [row for row in rollouts if row["label_source"].startswith("rule")]
    assert Counter(extract(row["completion"]).found for row in ruled) == {
        "boxed": 1420,
        "phrase": 17,
        "conclusion": 49,
        "unfinished thought": 121,
        "thought only": 4,
        "too many boxes": 2,
        "no answer": 106,
    }
    missing = [row["id"] for row in ruled if row["correct"] and not extract(row["completion"]).answer]
    # Labelled correct by the last number of the text: 4 unfinished thoughts, 2 cut right after the thought, and 6
    # that were cut or end in words which declare nothing.
    assert len(missing) == 12
    lines_of_gsm8k = [row for row in rollouts if row["label_source"].startswith("upstream")]
    assert sum(extract(row["completion"]).found == "phrase" for row in lines_of_gsm8k) == 3275
    right = [row for row in lines_of_gsm8k if row["correct"]]
    assert all(extract(row["completion"]).answer.replace(",", "") == row["gold"] for row in right)
