"""Stored verdicts looked at again: what the present verifier decides otherwise, and where rules and judge differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from algorist import store
from algorist.records import Problem, Rollout, Verdict
from algorist.verify import judge
from algorist.verify.equal import verifier
from conftest import Command

JUDGE = judge.Settings(url="http://127.0.0.1:9/v1", model="wise-7b")
MARK = f"+judge:wise-7b@{judge.prompt_hash()}"
PROBLEMS = [Problem.of("What is 2 + 3?", "5"), Problem.of("What is\n8 / 16?", r"\frac{1}{2}"), Problem.of("Ann?", "7")]
# (problem, its answer, by rules: right and reason, by the judge or None where it was not asked)
SAID: list[tuple[int, str, bool | None, str, tuple[bool | None, str] | None]] = [
    (0, "5", True, "equal", None),
    (0, "5.1", False, "different", (False, judge.CONFLICT)),
    (0, "6", False, "different", (False, "different")),
    (1, "0.5", True, "equal", None),
    (1, "0.7", False, "different", (False, judge.CONFLICT)),
    (1, "7", False, "different", (False, "judge undecided, rules: different")),
    (2, "8", False, "different", (False, judge.CONFLICT)),
    (2, "9", None, "timed out", (None, "judge undecided, rules: timed out")),
]
Looked = Callable[..., str]


@pytest.fixture
def looked(command: Command) -> Looked:
    """`looked("show", run)` → stdout of a command that succeeds; the bar of a recheck is all of stderr."""

    def call(*words: object) -> str:
        status, out, err = command(*words)
        assert status == 0 and all(line.startswith("verify: ") for line in err.splitlines()), err
        return out

    return call


@pytest.fixture
def judged_run(tmp_path: Path) -> Path:
    """A run folder with the verdicts of SAID, and the judge's words in its cache."""
    run = tmp_path / "run"
    rollouts = [Rollout.of(PROBLEMS[p].id, rf"\boxed{{{said}}}", "t", index=i) for i, (p, said, *_) in enumerate(SAID)]
    rules, final = [], []
    for rollout, (_, said, right, reason, opinion) in zip(rollouts, SAID, strict=True):
        rules.append(Verdict(rollout.id, right, reason, said, verifier()))
        final.append(replace(rules[-1], right=right, reason=reason))
        if opinion:
            final[-1] = Verdict(rollout.id, opinion[0], opinion[1], said, verifier() + MARK)
    store.write(run / "problems", Problem, PROBLEMS)
    store.write(run / "rollouts", Rollout, rollouts)
    store.write(run / "verdicts" / "rules", Verdict, rules)
    store.write(run / "verdicts", Verdict, final)
    asked = [(PROBLEMS[p], said) for p, said, *_ in SAID]
    cached = [(judge.Question(problem.statement, problem.answer, said).id(JUDGE), said) for problem, said in asked]
    lines = [{"id": name, "said": f"I see \x1b[2J{said}.\nVERDICT: SAME"} for name, said in cached if said != "8"]
    (run / "judge.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (run / "recipe.toml").write_text(f'name = "made"\n[judge]\nurl = "{JUDGE.url}"\nmodel = "{JUDGE.model}"\n')
    return run


@pytest.fixture
def copied_run(smoke_run: Path, tmp_path: Path) -> Path:
    """The smoke run, to be altered."""
    return shutil.copytree(smoke_run, tmp_path / "smoke")


def alter(folder: Path, place: int, **changes: Any) -> Verdict:
    """Change one stored verdict of the folder's first shard; what it was."""
    shard = store.read_shard(folder / "00000.parquet", Verdict)
    before = shard[place]
    store.write_shard(folder, 0, Verdict, [*shard[:place], replace(before, **changes), *shard[place + 1 :]])
    return before


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "recheck.jsonl"}


# ----------------------------------------------------------------------------------------------------------- recheck


def test_a_recheck_of_an_unaltered_run(looked: Looked, copied_run: Path) -> None:
    before = files(copied_run)
    lines = looked("verify", "--recheck", copied_run).splitlines()
    places = sorted((path.parent for path in copied_run.rglob("verdicts/00000.parquet")), key=lambda p: len(p.parts))
    assert len(places) == 8 and places[0].name == "verdicts"
    rows = {str(path.relative_to(copied_run)): sum(1 for _ in stored(path)) for path in places}
    expected = {f"{place}: {count:,} rows, {count:,} unchanged, 0 changed" for place, count in rows.items()}
    assert set(lines[:-1]) == expected and lines[0].startswith("verdicts: ")
    assert lines[-1] == f"recheck: nothing changed; the stored verdicts are by the present verifier, {verifier()}."
    assert (copied_run / "recheck.jsonl").read_text() == "" and files(copied_run) == before


def stored(folder: Path) -> list[Verdict]:
    return [v for shard in sorted(folder.glob("*.parquet")) for v in store.read_shard(shard, Verdict)]


def test_what_would_change_is_counted_and_listed(looked: Looked, copied_run: Path) -> None:
    teacher, scored, sampled = (copied_run / name for name in ("verdicts", "scores/sft/toy/verdicts", "rlvr/verdicts"))
    ours = verifier()
    for place in (0, 1):
        alter(teacher, place, right=None, reason="crashed", verifier="algorist-0")
    alter(scored, 2, right=True, reason="guessed")
    before = alter(sampled, 3, extracted="77")
    kept = files(copied_run)
    text = looked("verify", "--recheck", copied_run)
    now = [f"{'right' if v.right else 'wrong'} ({v.reason}) by {ours}" for v in stored(teacher)]
    rows = [json.loads(line) for line in (copied_run / "recheck.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["data_set"] for row in rows] == ["verdicts"] * 2 + ["rlvr/verdicts", "scores/sft/toy/verdicts"]
    count = len(stored(teacher))
    head = f"verdicts: {count} rows, {count - 2} unchanged, 2 changed\n"
    assert text.startswith(head) and "not judged (crashed) by algorist-0 → " in text
    words = {True: "right", False: "wrong"}[before.right]
    same = f"{words} ({before.reason}) by {ours}"
    assert f"        1  {same} → {same}, of another answer\n" in text
    assert f"        1  right (guessed) by {ours} → " in text
    total = sum(len(stored(path.parent)) for path in copied_run.rglob("verdicts/00000.parquet"))
    folders = ", ".join(str(copied_run / name) for name in ("verdicts", "rlvr", "scores/sft"))
    assert text.splitlines()[-1] == (
        f"recheck: 4 of {total:,} verdicts would change, listed in {copied_run}/recheck.jsonl; "
        f"what is stored stays as it is. To have the new ones, delete {folders} and run the recipe again: "
        "what follows is made again too."
    )
    rollouts = {rollout.id: rollout for rollout in store.read(copied_run / "rollouts", Rollout)}
    golds = {problem.id: problem.answer for problem in store.read(copied_run / "problems", Problem)}
    first = stored(teacher)[0]
    problem_id = rollouts[first.rollout_id].problem_id
    assert rows[0] == {
        "data_set": "verdicts",
        "rollout_id": first.rollout_id,
        "problem_id": problem_id,
        "gold": golds[problem_id],
        "extracted_before": first.extracted,
        "extracted_now": first.extracted,
        "before": None,
        "now": rows[0]["reason_now"] == "equal",
        "reason_before": "crashed",
        "reason_now": rows[0]["reason_now"],
        "verifier_before": "algorist-0",
        "verifier_now": ours,
    }
    assert (rows[2]["extracted_before"], rows[2]["extracted_now"]) == ("77", before.extracted) and now
    assert files(copied_run) == kept


def test_following_the_advice_gives_the_new_verdicts(command: Command, looked: Looked, copied_run: Path) -> None:
    before = alter(copied_run / "verdicts", 0, right=None, reason="crashed")
    looked("verify", "--recheck", copied_run)
    shutil.rmtree(copied_run / "verdicts")
    assert command("run", copied_run / "recipe.toml", "--out", copied_run, "--until", "verdicts")[0] == 0
    assert stored(copied_run / "verdicts")[0] == before
    assert looked("verify", "--recheck", copied_run).splitlines()[-1].startswith("recheck: nothing changed")


def test_what_is_superseded_is_left_alone(looked: Looked, judged_run: Path) -> None:
    shutil.copytree(judged_run / "verdicts", judged_run / "superseded" / "scores-sft-00" / "toy" / "verdicts")
    assert "superseded/" not in looked("verify", "--recheck", judged_run)
    assert "3 of 3 disagreements" in looked("show", judged_run, "--disagreements")


def test_another_verifier_that_changes_nothing(looked: Looked, judged_run: Path) -> None:
    shutil.rmtree(judged_run / "verdicts")
    rollout = store.read(judged_run / "rollouts", Rollout)[0]
    store.write(judged_run / "verdicts", Verdict, [Verdict(rollout.id, True, "equal", "5", "algorist-0")])
    last = looked("verify", "--recheck", judged_run).splitlines()[-1]
    assert last == f"recheck: nothing changed from algorist-0 to {verifier()}."


def test_verdicts_that_a_judge_has_seen_are_compared_by_what_the_rules_had_said(
    looked: Looked, judged_run: Path
) -> None:
    lines = looked("verify", "--recheck", judged_run).splitlines()
    assert lines[:3] == [
        "verdicts: 2 rows, 2 unchanged, 0 changed",
        "verdicts, seen by a judge (compared is what the rules had said): 6 rows, 5 unchanged, 1 changed",
        f"        1  not judged (timed out) by {verifier()} → wrong (different) by {verifier()}",
    ]
    assert len(lines) == 4, "verdicts/rules is part of verdicts, no data set of its own"
    (row,) = map(json.loads, (judged_run / "recheck.jsonl").read_text(encoding="utf-8").splitlines())
    assert (row["extracted_now"], row["before"], row["now"]) == ("9", None, False)


def test_conventions_are_the_runs_and_may_be_tried(looked: Looked, judged_run: Path, tmp_path: Path) -> None:
    problem = Problem.of("How much?", r"10\%")
    rollout = Rollout.of(problem.id, r"\boxed{10}", "t")
    store.write(judged_run / "problems", Problem, [*PROBLEMS, problem])
    store.write(judged_run / "rollouts", Rollout, [rollout])
    store.write(judged_run / "verdicts", Verdict, [Verdict(rollout.id, True, "equal", "10", verifier())])
    assert "1 unchanged" in looked("verify", "--recheck", judged_run)
    out = tmp_path / "else.jsonl"
    strict = ("--set", "verify.percent=false", "--out", out, "--workers", 1)
    assert f"listed in {out};" in looked("verify", "--recheck", judged_run, *strict)
    assert json.loads(out.read_text())["reason_now"] == "different"
    with (judged_run / "recipe.toml").open("a") as recipe:
        recipe.write("[verify]\npercent = false\n")
    assert "1 changed" in looked("verify", "--recheck", judged_run)


def test_what_cannot_be_judged_again_is_counted(looked: Looked, judged_run: Path) -> None:
    shutil.rmtree(judged_run / "verdicts" / "rules")
    store.write(judged_run / "problems", Problem, PROBLEMS[:1])
    alter(judged_run / "verdicts", 0, rollout_id="gone")
    lines = looked("verify", "--recheck", judged_run).splitlines()
    assert lines[:-1] == [
        "verdicts: 1 left out: the rollout is not here",
        "verdicts: 2 left out: what the rules had said is not here",
        "verdicts: 5 left out: the problem is not here",
    ]


# ----------------------------------------------------------------------------------------------------- disagreements


def test_the_review_queue(looked: Looked, judged_run: Path) -> None:
    rollouts = store.read(judged_run / "rollouts", Rollout)

    def block(place: int, *lines: str) -> str:
        problem = PROBLEMS[SAID[place][0]]
        return "\n".join([f"rollout {rollouts[place].id}, problem {problem.id}, stored as wrong", *lines, "\n"])

    first = block(
        1,
        "  problem: What is 2 + 3?",
        "  gold:    5",
        "  answer:  5.1",
        "  rules:   different",
        "  judge:   I see \ufffd[2J5.1.",
        "           VERDICT: SAME",
    )
    second = block(
        4,
        "  problem: What is",
        "           8 / 16?",
        r"  gold:    \frac{1}{2}",
        "  answer:  0.7",
        "  rules:   different",
        "  judge:   I see \ufffd[2J0.7.",
        "           VERDICT: SAME",
    )
    third = block(
        6,
        "  problem: Ann?",
        "  gold:    7",
        "  answer:  8",
        "  rules:   different",
        "  judge:   (its words are not in judge.jsonl; [judge] was another then)",
    )
    end = "of 3 disagreements; --count shows more; judge undecided: 2\n"
    view = ("show", judged_run, "--disagreements")
    assert looked(*view) == f"{first}{second}{third}3 {end}"
    assert looked(*view, "--count", 1) == f"{first}1 {end}"
    assert looked(*view, "--id", PROBLEMS[1].id[:10]) == looked(*view, "--id", rollouts[4].id) == f"{second}1 {end}"
    (judged_run / "judge.jsonl").unlink()
    assert looked(*view).count("its words are not in judge.jsonl") == 3
    store.write(judged_run / "problems", Problem, PROBLEMS[:2])
    assert looked(*view).endswith(f"2 {end.strip()}; 1 cannot be shown: rollout or problem is not here\n")


def test_a_trusted_judge_and_none_at_all(looked: Looked, judged_run: Path, smoke_run: Path) -> None:
    alter(judged_run / "verdicts", 1, right=True)
    assert ", stored as right\n" in looked("show", judged_run, "--disagreements")
    for place in (1, 4, 6):
        alter(judged_run / "verdicts", place, right=False, reason="different")
    assert looked("show", judged_run, "--disagreements") == (
        f"{judged_run}: rules and judge disagree on none of the 6 verdicts that both saw; judge undecided: 2\n"
    )
    assert looked("show", smoke_run, "--disagreements") == (
        f"{smoke_run}: no judge has seen a verdict of this folder. [judge] url in a recipe names one.\n"
    )


# ---------------------------------------------------------------------------------------------------------- messages


def test_messages(command: Command, judged_run: Path, tmp_path: Path) -> None:
    def refused(*words: object) -> tuple[int, str]:
        status, out, err = command(*words)
        assert out == "" and "Traceback" not in err
        return status, err.rstrip("\n")

    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("")
    assert refused("verify", pairs, "--recheck", judged_run) == (
        2,
        f"verify: both {pairs} and --recheck {judged_run} were given. Give one of them.",
    )
    for folder in (tmp_path, tmp_path / "none", pairs):
        assert refused("verify", "--recheck", folder) == (
            4,
            f"{folder}: is no run (there is no recipe.toml). Name the folder that algorist run wrote.",
        )
    assert refused("verify", "--recheck", judged_run, "--set", "verify.second=2") == (
        2,
        "--set verify.second=2: [verify] second is not a key of this section. Did you mean seconds?",
    )
    assert refused("show", judged_run, "pair", "--disagreements") == (
        2,
        "show pair --disagreements: these are two views. Give one of them.",
    )
    assert refused("show", judged_run, "--disagreements", "--id", "zz") == (
        3,
        f"{judged_run}: no disagreement has the id zz. Leave --id out to see all of them.",
    )
    with (judged_run / "judge.jsonl").open("a") as cache:
        cache.write("[]\n")
    assert refused("show", judged_run, "--disagreements") == (
        3,
        f"{judged_run}/judge.jsonl:8: not an answer of the judge (a JSON object with id and said). Delete this line.",
    )
    shutil.rmtree(judged_run / "verdicts")
    for words in (("verify", "--recheck", judged_run), ("show", judged_run, "--disagreements")):
        assert refused(*words) == (
            4,
            f"{judged_run}: has no verdicts yet. Run the command that made the folder until verdicts is done.",
        )
