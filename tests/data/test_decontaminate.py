import json
import pickle
import random
import time
from pathlib import Path

import pytest

from algorist.data.decontaminate import (
    Index,
    benchmark_id,
    decontaminate,
    hits,
    quotes,
    read_report,
    require_report,
    rollout_hits,
    write_report,
)
from algorist.data.leaks import FUZZY
from algorist.errors import RecordError, RunError
from algorist.records import Problem, Rollout
from oracles.shingles import jaccard
from oracles.words import spell

DATA = Path(__file__).parents[2].parent / "shared" / "data"
WORDS = [f"{head}{tail}" for head in ("ba", "ke", "li", "mo", "nu", "pra", "sti", "tre") for tail in "abcdefghij"]

LONG = "A train leaves the station at noon and travels north at sixty miles per hour for three hours."
BENCHMARKS = {"trains": [Problem.of(LONG, "180")], "sums": [Problem.of("What is $5 - 3$?", "2")]}


def kept(statement: str, ngram: int = 13) -> bool:
    return bool(decontaminate([Problem.of(statement, "1")], BENCHMARKS, ngram, fuzzy=0)[0])


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
    assert (found.test, found.score, found.rollout_id) == ("words", 18, "")


def test_against_an_obvious_double_loop():
    draw = random.Random(5)
    sentences = [" ".join(draw.choices("abcd", k=draw.randint(2, 14))) for _ in range(160)]
    problems = [Problem.of(sentence, "1") for sentence in sentences[:120]]
    questions = [Problem.of(sentence, "1") for sentence in sentences[120:]]
    for n in (3, 5, 8):
        expected = set()
        has = {one.id: {tuple(w[at : at + n]) for at in range(len(w) - n + 1)} for one in questions
               for w in [one.statement.split()]}  # fmt: skip
        often = {run for runs in has.values() for run in runs if sum(run in other for other in has.values()) >= 3}
        telling = {one: (runs - often) or runs for one, runs in has.items()}
        for problem in problems:
            for question in questions:
                one, other = problem.statement.split(), question.statement.split()
                shared = any(tuple(one[at : at + n]) in telling[question.id] for at in range(len(one) - n + 1))
                if shared or (one == other and len(one) < n):
                    expected.add((problem.id, question.id))
        clean, report = decontaminate(problems, {"b": questions}, n, fuzzy=0)
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


def disguised(draw: random.Random, text: str) -> str:
    """The same words in other case, with other white space, marks and type around them."""
    words = [draw.choice((str.upper, str.lower, str.title, str))(word) for word in text.split()]
    words = [
        draw.choice(("{}", "${}$", "\\text{{{}}}", "**{}**", "{},", "\\left( {} \\right)")).format(word)
        for word in words
    ]
    return "".join(word + draw.choice((" ", "  ", "\n", "\t", " \\, ", " $ ")) for word in words)


def test_no_verbatim_leak_is_missed_whatever_its_dress():
    draw = random.Random(11)
    questions = [Problem.of(" ".join(draw.choices(WORDS, k=draw.randint(13, 80))), "1") for _ in range(300)]
    index = Index.of({"b": questions}, fuzzy=0)
    problems = []
    for question in questions:
        words = question.statement.split()
        start = draw.randint(0, len(words) - 13)
        part = " ".join(words[start : start + draw.randint(13, len(words))])
        around = [" ".join(draw.choices(WORDS, k=draw.randint(0, 60))) for _ in range(2)]
        problems.append(Problem.of(f"{around[0]} {disguised(draw, part)} {around[1]}", "1"))
    found = {(hit.problem_id, hit.benchmark_problem_id) for hit in hits(index, problems)}
    assert found == {(problem.id, question.id) for problem, question in zip(problems, questions, strict=True)}
    assert quotes(index, [problem.statement for problem in problems]) == ["b"] * len(problems)
    strangers = [Problem.of(" ".join(draw.choices(WORDS, k=200)), "1") for _ in range(500)]
    assert not hits(index, strangers) and set(quotes(index, [one.statement for one in strangers])) == {""}


def paraphrased(draw: random.Random, text: str, edits: int) -> str:
    words = text.split()
    for _ in range(edits):
        at = draw.randrange(len(words))
        match draw.randint(0, 2):
            case 0:
                words[at] = draw.choice(WORDS)
            case 1 if len(words) > 3:
                del words[at]
            case _:
                words.insert(at, draw.choice(WORDS))
    return " ".join(words)


def test_light_paraphrases_are_found_by_the_second_test():
    draw = random.Random(12)
    questions = [Problem.of(" ".join(draw.choices(WORDS, k=draw.randint(14, 60))), "1") for _ in range(600)]
    planted = []
    for question in questions:
        copy = paraphrased(draw, question.statement, draw.randint(1, 3))
        if 0.78 <= jaccard(spell(question.statement, True), spell(copy, True), 3) <= 0.9:
            planted.append((Problem.of(copy, "1"), question))
    assert len(planted) > 200
    index = Index.of({"b": questions}, ngram=1000)  # the first test cannot help
    strangers = [Problem.of(" ".join(draw.choices(WORDS, k=40)), "1") for _ in range(500)]
    found = hits(index, [problem for problem, _ in planted] + strangers)
    met = {(hit.problem_id, hit.benchmark_problem_id) for hit in found}
    assert {hit.test for hit in found} == {"fuzzy"} and all(hit.score >= FUZZY for hit in found)
    assert met == {(problem.id, question.id) for problem, question in planted}  # recall and precision are 1
    assert not hits(Index.of({"b": questions}, ngram=1000, fuzzy=0), [problem for problem, _ in planted])


def test_below_the_limit_the_numbers_decide():
    asked = "How many integers are in the solution set of $|x-2|\\leq5.6$ ?"
    index = Index.of({"b": [Problem.of(asked, "11")]}, ngram=20)
    said = [
        "How many integers are there in the solution set of $|x-2| \\leq 5.6$?",
        "How many integers are there in the solution set of $|x-3| \\leq 5.6$?",
    ]
    (found,) = hits(index, [Problem.of(text, "11") for text in said])
    assert found.problem_id == Problem.of(said[0], "").id and found.test == "fuzzy" and found.score == 0.6875
    assert found.words.startswith("how many integers are there in the solution set of x 2 5 6")


def test_a_paraphrase_inside_a_longer_problem():
    asked = "A train leaves the station at noon and travels 60 miles north, then 80 miles east. How far away is it?"
    inside = asked.replace("the station", "a station").replace("then", "and")
    index = Index.of({"b": [Problem.of(asked, "100")]}, ngram=13)
    story = "This is about trains and other machines. Read with care and give your answer in miles, if you can. "
    (found,) = hits(index, [Problem.of(story + inside + " Explain each step that you take on the way there.", "100")])
    assert found.test == "fuzzy" and 0.6 <= found.score < 1
    assert not hits(index, [Problem.of(story + inside.replace("60", "61") + " Explain each step.", "100")])


def test_short_benchmarks_meet_short_problems_with_their_operators_only():
    index = Index.of(BENCHMARKS)
    (found,) = hits(index, [Problem.of("what is 5-3", "2"), Problem.of("What is $5 + 3$?", "8")])
    assert (found.test, found.words, found.score) == ("short", "what is 5 - 3", 5)
    assert quotes(index, ["We are asked: What is $5 - 3$? It is 2.", ""]) == ["", ""]


def test_rollouts_are_reported_with_their_ids():
    index = Index.of(BENCHMARKS)
    rollouts = [Rollout.of("p", text, "m", index=at) for at, text in enumerate(["No.", "Okay: " + LONG + " So 180."])]
    (found,) = rollout_hits(index, rollouts)
    assert (found.problem_id, found.rollout_id, found.benchmark, found.test) == ("p", rollouts[1].id, "trains", "words")
    assert found.words == LONG.lower().rstrip(".")


def test_an_index_is_small_and_travels():
    index = Index.of({"b": [Problem.of(f"{LONG} {at}", "1") for at in range(100)]})
    sent = pickle.dumps(index)
    assert len(sent) < 400_000
    assert quotes(pickle.loads(sent), [f"{LONG} 7", LONG]) == ["b", ""]


def test_what_many_benchmark_problems_say_is_a_form_of_speech():
    form = "can be written as m/n, where m and n are relatively prime positive integers. Find m + n."
    asked = [
        Problem.of(f"The {thing} has area A. Its share {form}", "1") for thing in ("disc", "cone", "kite", "wedge")
    ]
    index = Index.of({"exam": asked, "bare": [Problem.of(f"It {form}", "2")]}, fuzzy=0)
    other = Problem.of(f"A cube is cut by a plane through three of its corners. The ratio of the parts {form}", "3")
    leaked = Problem.of(f"Hard one: the cone has area A. Its share {form}", "4")
    assert [(hit.problem_id, hit.benchmark_problem_id) for hit in hits(index, [other, leaked])] == [
        (leaked.id, asked[1].id)
    ]
    assert quotes(index, [f"So the answer {form}", f"I know it: the wedge has area A. Its share {form}"]) == [
        "",
        "exam",
    ]
    # A statement that is nothing but the form is still looked for.
    bare = Index.of({"exam": [*asked, Problem.of(f"Share {form}", "5")]}, fuzzy=0)
    assert {hit.benchmark_problem_id for hit in hits(bare, [Problem.of(f"Well: share {form}", "6")])} != set()


@pytest.mark.skipif(not DATA.exists(), reason="the real data is not here")
def test_on_real_sets():
    """All hits of the second test were read: |x - 2| ≤ 5.6 is a leak, the others ask something else."""

    def read(name: str) -> list[Problem]:
        with open(DATA / f"{name}.jsonl", encoding="utf-8") as lines:
            return [Problem.of(row["question"], row["answer"]) for row in map(json.loads, lines)]

    found = hits(Index.of({"math500": read("math500")}), read("math_train"))
    words = {hit.problem_id for hit in found if hit.test == "words"}
    fuzzy = {hit.problem_id for hit in found if hit.test == "fuzzy"} - words
    assert (len(words), len(fuzzy)) == (172, 16)
    assert Problem.of("How many integers are there in the solution set of $|x-2| \\leq 5.6$?", "").id in fuzzy
    found = hits(Index.of({"gsm8k_test": read("gsm8k_test")}), read("gsm8k_train"))
    assert [hit.test for hit in found] == ["words"] * 4
