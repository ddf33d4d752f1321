import json
from pathlib import Path

import pytest

from algorist import store
from algorist.data.decontaminate import read_report, require_report
from algorist.data.funnel import Agreement, Step
from algorist.data.gather import Settings, funnel_text, gather
from algorist.data.problems import read_benchmark, read_rows
from algorist.errors import RecipeError, RunError
from algorist.records import Problem, Rollout, Verdict

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def responses(question: str, gold: str, *answers: str, **more: object) -> list[dict]:
    return [{"question": question, "gold": gold, "completion": text, "model": "m", **more} for text in answers]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    problems = [
        {"question": "What is 2 + 2?", "answer": "4"},
        {"question": "What is 3 + 3?", "answer": "6"},
        {"question": "What is 9 + 9?", "answer": "18"},
        {"question": "Two roots?", "answer": "1", "n_boxed": 2},
    ]
    rollouts = [
        *responses("What is 2 + 2?", "4", "A: 4", "A: 5", "no idea", "\\boxed{4}", "A: 7", correct=True),
        *responses("What is 3 + 3?", "6", "A: 6", correct=False),
        *responses("What is 9 + 9?", "18", "A: 18", "A: 19", correct=True),
        *responses("Two roots?", "1", "A: 1"),
        *responses("What is 4 + 4?", "8", "A: 8", finish="length", label_source="other"),
        *responses("What is 5 + 5?", "10", "A: 1"),
    ]
    return {
        "problems": write_lines(tmp_path / "problems.jsonl", problems),
        "rollouts": write_lines(tmp_path / "rollouts.jsonl", rollouts),
        "benchmark": write_lines(tmp_path / "exam.jsonl", [{"question": "what is $9 + 9$?", "answer": "18"}]),
        "out": tmp_path / "out",
    }


def test_every_record_is_accounted_for(files):
    funnel = gather([files["problems"]], [files["rollouts"]], files["out"], against=[files["benchmark"]])
    assert funnel.steps == (
        Step("problems in problems.jsonl", 4, {"several boxed answers": 1}, 3),
        Step("problems inside rollouts.jsonl", 6, {"left out of its problem file": 1}, 5),
        Step("problems, all files together", 8, {"same statement twice": 3}, 5),
        Step("rollouts in rollouts.jsonl", 11, {}, 11),
        Step("rollouts of these problems", 11, {"its problem was left out": 1}, 10),
        Step("problems found in no benchmark", 5, {"in exam": 1}, 4),
        Step("rollouts judged right", 10, {"different": 4, "no answer": 1}, 5),
        Step(
            "rollouts that became samples",
            5,
            {"on a benchmark problem: judged only, never trained on": 1, "right, but cut off before the end": 1},
            3,
        ),
        Step(
            "problems with rollouts that gave pairs",
            5,
            {"a benchmark problem: judged only, never trained on": 1, "no wrong rollout": 1, "no right rollout": 2},
            1,
        ),
    )
    assert all(step.entered == step.left + sum(step.dropped.values()) for step in funnel.steps)
    assert funnel.agreement == (Agreement("other", 1, 0, 0, 0, 0, 0), Agreement("rollouts", 9, 8, 3, 1, 4, 0))
    assert json.loads((files["out"] / "funnel.json").read_text())["pairs"] == funnel.pairs == 2
    assert (files["out"] / "funnel.txt").read_text() == funnel_text(funnel)


def test_the_printed_tables(files):
    funnel = gather([files["problems"]], [files["rollouts"]], files["out"], against=[files["benchmark"]])
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(funnel.rejected.items()))
    lines = funnel_text(funnel).splitlines()
    assert lines[:4] == [
        "step                                                       in  dropped  out",
        "---------------------------------------------------------------------------",
        "problems in problems.jsonl                                  4        1    3",
        "    several boxed answers                                            1",
    ]
    tail = lines.index("samples 3")
    assert lines[tail + 1 :] == [
        f"pairs   2 (rejected side: {reasons})",
        "",
        "our verdicts and the labels of  labelled  agree   share  only we: right  only we: wrong  unjudged",
        "-" * 97,
        "other                                  0      0       –               0               0         0",
        "rollouts                               8      3  37.5 %               1               4         0",
        "all together                           8      3  37.5 %               1               4         0",
    ]


def test_samples_and_pairs_carry_messages_and_ids_and_nothing_from_a_benchmark(files):
    funnel = gather([files["problems"]], [files["rollouts"]], files["out"], against=[files["benchmark"]])
    rollouts = {rollout.id: rollout for rollout in store.read(files["out"] / "rollouts", Rollout)}
    samples, pairs = read_lines(files["out"] / "samples.jsonl"), read_lines(files["out"] / "pairs.jsonl")
    asked = {"role": "user", "content": "What is 2 + 2?"}
    assert sorted(sample["messages"][1]["content"] for sample in samples) == ["A: 4", "A: 6", "\\boxed{4}"]
    assert all(sample["messages"][1]["content"] == rollouts[sample["rollout_id"]].text for sample in samples)
    assert [pair["prompt"] for pair in pairs] == [[asked], [asked]]
    assert [pair["chosen_id"] for pair in pairs] == sorted(pair["chosen_id"] for pair in pairs)
    assert [pair["rejected_id"] for pair in pairs] == sorted(r.id for r in rollouts.values() if r.index in (1, 2, 4))[
        :2
    ]
    for pair in pairs:
        assert pair["rejected"] == [{"role": "assistant", "content": rollouts[pair["rejected_id"]].text}]
        assert pair["rejected_reason"] == ("no answer" if rollouts[pair["rejected_id"]].index == 2 else "different")
    assert sum(funnel.rejected.values()) == 2


def test_data_sets_name_their_parents_and_set_the_benchmark_aside(files):
    out = files["out"]
    gather([files["problems"]], [files["rollouts"]], out, against=[files["benchmark"]])
    assert [problem.statement for problem in store.read(out / "set-aside", Problem)] == ["What is 9 + 9?"]
    assert "What is 9 + 9?" not in [problem.statement for problem in store.read(out / "problems", Problem)]
    verdicts, rollouts = store.read(out / "verdicts", Verdict), store.read(out / "rollouts", Rollout)
    assert [verdict.rollout_id for verdict in verdicts] == [rollout.id for rollout in rollouts]
    made = [store.manifest(out / name).id for name in ("problems", "set-aside", "rollouts")]
    assert store.manifest(out / "verdicts").parents == tuple(made)
    assert store.manifest(out / "problems").dropped == {
        "several boxed answers": 1,
        "left out of its problem file": 1,
        "same statement twice": 3,
        "in exam": 1,
    }
    require_report(out, {"exam": read_benchmark(files["benchmark"])})
    assert len(read_report(out).hits) == 1


def test_pairs_per_problem_is_a_limit(files):
    settings = Settings(pairs_per_problem=1)
    assert gather([files["problems"]], [files["rollouts"]], files["out"], settings=settings).pairs == 2


def test_without_a_benchmark_there_is_no_report_and_the_text_says_so(files):
    funnel = gather([files["problems"]], [files["rollouts"]], files["out"])
    assert not (files["out"] / "decontamination.json").exists()
    sentence = "Compared with no benchmark: samples.jsonl and pairs.jsonl may hold test questions."
    assert sentence in funnel_text(funnel).splitlines()


def test_the_same_rollouts_in_two_files_count_once_and_others_with_their_numbers_are_kept(tmp_path):
    one = write_lines(tmp_path / "one.jsonl", responses("Q", "4", "A: 4", "A: 5"))
    two = write_lines(tmp_path / "two.jsonl", responses("Q", "4", "A: 4", "A: 6", correct=True))
    funnel = gather([], [one, two], tmp_path / "out")
    assert funnel.steps[5] == Step("rollouts of these problems", 4, {"same rollout twice": 1}, 3)
    rollouts = store.read(tmp_path / "out" / "rollouts", Rollout)
    assert [(rollout.text, rollout.index) for rollout in rollouts] == [("A: 4", 0), ("A: 5", 1), ("A: 6", 2)]
    assert [(row.source, row.labelled) for row in funnel.agreement] == [("one", 1), ("two", 1)]


def test_a_statement_refused_in_one_file_and_sound_in_another_is_kept(tmp_path):
    one = write_lines(tmp_path / "one.jsonl", [{"question": "Q", "answer": ""}])
    two = write_lines(tmp_path / "two.jsonl", [{"question": "Q", "answer": "4"}])
    rollouts = write_lines(tmp_path / "r.jsonl", responses("Q", "4", "A: 4"))
    assert gather([one, two], [rollouts], tmp_path / "out").steps[2] == Step("problems inside r.jsonl", 1, {}, 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_gather_goes_on_at_the_next_shard_and_ends_the_same(tmp_path):
    answers = [f"A: {number}" for number in range(2100)]
    rollouts = write_lines(tmp_path / "r.jsonl", responses("How many?", "7", *answers))
    gather([], [rollouts], tmp_path / "straight")

    def interrupt(done: int, total: int) -> None:
        assert total == 2100
        if done == 1000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather([], [rollouts], tmp_path / "cut", progress=interrupt)
    assert sorted(path.name for path in (tmp_path / "cut" / "verdicts").iterdir()) == ["00000.parquet"]
    judged = (tmp_path / "cut" / "verdicts" / "00000.parquet").stat().st_mtime_ns
    calls: list[tuple[int, int]] = []
    gather([], [rollouts], tmp_path / "cut", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1000, 2100), (2000, 2100), (2100, 2100)]
    assert (tmp_path / "cut" / "verdicts" / "00000.parquet").stat().st_mtime_ns == judged
    assert contents(tmp_path / "cut") == contents(tmp_path / "straight")


def test_messages(files, tmp_path):
    out = files["out"]
    gather([files["problems"]], [files["rollouts"]], out)
    with files["rollouts"].open("a") as lines:
        lines.write(json.dumps(responses("Q", "1", "A: 1")[0]) + "\n")
    with pytest.raises(RunError) as error:
        gather([files["problems"]], [files["rollouts"]], out, settings=Settings(ngram=8))
    assert str(error.value) == (
        f"{out}: holds a gather of other inputs (changed: rollouts, settings). "
        "Name another folder, or delete this one to start again."
    )
    store.write(tmp_path / "own" / "problems", Problem, [])
    with pytest.raises(RunError) as error:
        gather([], [files["rollouts"]], tmp_path / "own")
    assert str(error.value) == (
        f"{tmp_path / 'own'}: holds data sets that no gather made (there is no gather.json). Name another folder."
    )
    with pytest.raises(RecipeError, match="there is no such file"):
        gather([tmp_path / "none.jsonl"], [], tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(RecipeError) as refused:
        Settings(ngram=0)
    assert str(refused.value) == (
        "gather: ngram 0, pairs_per_problem 4 and seconds 1.0 cannot be used. "
        "Give at least 1 word, 0 pairs and more than 0 seconds."
    )


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_real_rollouts_agree_with_their_graders(tmp_path):
    rows = list(read_rows(SHARED / "rollouts_real.jsonl"))
    some = write_lines(tmp_path / "some.jsonl", rows[:3808:40] + rows[3808:4400:20])
    funnel = gather([], [some], tmp_path / "out", against=[SHARED / "math500.jsonl", SHARED / "gsm8k_test.jsonl"])
    labelled = sum(row.labelled for row in funnel.agreement)
    assert labelled == funnel.steps[1].left > 120
    assert sum(row.agree for row in funnel.agreement) > 0.95 * labelled
    assert sum(row.unjudged for row in funnel.agreement) == 0
