"""What people see of a run: each view's text, its colours on a terminal, and its messages word for word."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from algorist import journal, recipe, store, tasks
from algorist.errors import RecordError
from algorist.model.chat import load_tokenizer
from algorist.numerics.address import rng
from algorist.records import Pair, Problem, Rollout, Sample, Verdict
from algorist.show import Look, show
from algorist.tokens import Corpus, write
from conftest import ROOT

STAGES = ("base", "midtrain", "sft", "dpo", "rlvr")


def shown(command, *words: object) -> str:
    status, out, err = command("show", *words)
    assert (status, err) == (0, "")
    return out


def test_the_overview_has_tasks_funnel_table_and_what_else_there_is(command, smoke_run):
    text = shown(command, smoke_run)
    assert text.startswith(f"{smoke_run}: recipe smoke, seed 1\n  benchmarks           done\n")
    assert len(re.findall(r"^  \S+ +done$", text, re.MULTILINE)) == 11 + 2 * len(STAGES)
    assert "**toy**: 8 problems, 1 samples each" in text
    more = f"More: algorist show {smoke_run} problems|rollouts|pair|batch|funnel; algorist why ID --run {smoke_run}"
    assert text.splitlines()[-1] == more


def test_what_another_version_or_another_recipe_made_is_called_so(command, smoke_run, tmp_path):
    run = shutil.copytree(smoke_run, tmp_path / "run")
    for task in ("sft", "dpo"):
        mark = run / task / "task.json"
        value = json.loads(mark.read_text())
        version, digest = value["fingerprint"].split("-")
        value["fingerprint"] = f"2-{digest}" if task == "sft" else f"{version}-{digest[::-1]}"
        mark.write_text(json.dumps(value))
    states = dict(line.split(maxsplit=1) for line in shown(command, run).splitlines() if line.startswith("  "))
    assert states["sft"] == "made by another version" and states["dpo"] == "made by another recipe"


def test_the_funnel_has_every_data_set_with_drops_and_parents(command, smoke_run):
    funnel, _, rest = shown(command, smoke_run, "funnel").partition("\nbenchmarks/")
    assert "set of midtrain" in funnel and "in the tokens of the model" in funnel
    lines = f"benchmarks/{rest}".splitlines()
    places = {str(path.parent.relative_to(smoke_run)) for path in smoke_run.rglob("manifest.json")}
    assert {line.split()[0] for line in lines if not line.startswith(" ")} == places
    made = store.manifest(smoke_run / "sft" / "data")
    assert f"{'sft/data':28} {made.rows:>9,} samples  {made.id}  from sets/sft" in lines
    for reason, count in made.dropped.items():
        assert f"{'':28} {count:>9,} left out: {reason}" in lines
    (pairs,) = [line for line in lines if line.startswith("dpo/data")]
    assert pairs.endswith("from sets/dpo, sft/checkpoint")


def test_problems_tally_their_rollouts(command, smoke_run):
    problem = store.read(smoke_run / "problems", Problem)[1]
    right = {verdict.rollout_id: verdict.right for verdict in store.read(smoke_run / "verdicts", Verdict)}
    rollouts = store.read(smoke_run / "rollouts", Rollout)
    own = [right[rollout.id] for rollout in rollouts if rollout.problem_id == problem.id]
    expected = (
        f"problem {problem.id}  ({problem.level}, arithmetic, number, {problem.source})\n"
        f"  {problem.statement}\n"
        f"  answer: {problem.answer}\n"
        f"  rollouts: {own.count(True)} right, {own.count(False)} wrong, 0 not judged\n"
        "1 of 60 problems; --count shows more\n"
    )
    assert shown(command, smoke_run, "problems", "--id", problem.id[:8]) == expected
    assert shown(command, smoke_run, "problems", "--count", 2).count("answer:") == 2


def test_rollouts_of_one_problem_with_verdict_and_reason(command, smoke_run):
    wrong = next(verdict for verdict in store.read(smoke_run / "verdicts", Verdict) if verdict.reason == "different")
    rollouts = {rollout.id: rollout for rollout in store.read(smoke_run / "rollouts", Rollout)}
    rollout = rollouts[wrong.rollout_id]
    text = shown(command, smoke_run, "rollouts", "--id", rollout.problem_id)
    head = f"rollout {rollout.id} of toy-teacher, wrong (different), answer: {wrong.extracted}"
    assert f"\n{head}\n{rollout.text}\n" in text
    assert text.count("\nrollout ") == 4
    assert "cut at max_tokens" not in text
    assert shown(command, smoke_run, "rollouts", "--id", rollout.id).count("\nrollout ") == 1


def test_a_pair_side_by_side_with_the_reference(command, smoke_run):
    pair = store.read(smoke_run / "dpo" / "data", Pair)[0]
    text = shown(command, smoke_run, "pair")
    assert text.startswith(f"pair {pair.id}, problem {pair.problem_id}, answer: ")
    row = next(line for line in text.splitlines() if "reference log-probability" in line)
    numbers = [float(number) for number in re.findall(r"-\d+\.\d+", row)]
    assert numbers == pytest.approx([pair.chosen_ref_logprob, pair.rejected_ref_logprob], abs=1e-3)
    assert re.search(r"│ right \(equal\), answer: \d+ +│ wrong \(\w", text)
    columns = list(zip(*(line.split("│")[1:3] for line in text.splitlines() if line.startswith("│")), strict=True))
    rollouts = {rollout.id: rollout.text for rollout in store.read(smoke_run / "rollouts", Rollout)}
    for column, rollout_id in zip(columns, (pair.chosen_id, pair.rejected_id), strict=True):
        words = " ".join(column).split()
        assert words[:2] == ["rollout", rollout_id]
        assert " ".join(words).endswith(" ".join(rollouts[rollout_id].split()))


@pytest.mark.parametrize("stage", ["base", "midtrain", "sft"])
def test_a_batch_marks_what_is_trained(command, smoke_run, stage):
    """The brackets and what stands beside them are exactly the stored sample, in the order that training takes."""
    text = shown(command, smoke_run, "batch", "--stage", stage, "--count", 3)
    chat = load_tokenizer(str(smoke_run / "base" / "checkpoint"))
    corpus = Corpus.open(smoke_run / stage / "data", Sample)
    stored = zip(store.read(smoke_run / stage / "data", Sample), corpus, strict=True)
    samples = {sample.id: (sample, ids.tolist()) for sample, ids in stored}
    found = re.findall(r"── document \d+: sample (\w+), .*, (\d+) tokens, (\d+) trained ──\n(.*)\n", text)
    assert len(found) == 3
    for identity, tokens, trained, line in found:
        sample, ids = samples[identity]
        read, said = ids[: sample.prompt_len], ids[sample.prompt_len :]
        assert (int(tokens), int(trained)) == (sample.num_tokens, len(said)) == (len(ids), len(said))
        assert line == "".join(map(chat.decode, read)) + "".join(f"[{chat.decode(token)}]" for token in said)
    assert stage == "base" or all(line.endswith("[<|end|>]") for *_, line in found)
    entry = journal.read(smoke_run / stage)[0]
    head = re.match(rf"{stage}, step 0: \d+ documents, micro-batches: \d+, ([\d,]+) tokens, ([\d,]+) of them", text)
    assert head and int(head[1].replace(",", "")) == entry["tokens"]


def test_documents_with_the_same_words_go_by_their_own_names(command, smoke_run, tmp_path):
    """Two rollouts may say the same, so ids do not tell which document of a step is which; its place does."""
    run = shutil.copytree(smoke_run, tmp_path / "run")
    samples = store.read(run / "sft" / "data", Sample)
    alike = [replace(one, num_tokens=3, prompt_len=1) for one in samples]
    write(run / "sft" / "data", Sample, alike, [np.array([5, 6, 7], np.int32)] * len(alike), shard_rows=10)
    text = shown(command, run, "batch", "--stage", "sft", "--count", 999)
    drawn = rng(1, "sft", "rows", 0).permutation(len(alike))[:16]  # the seed and batch size of the recipe
    named = re.findall(r"── document \d+: sample (\w+), problem (\w+),", text)
    assert named == [(alike[place].id, alike[place].problem_id) for place in drawn]


def test_a_batch_of_pairs_and_a_later_step(command, smoke_run):
    text = shown(command, smoke_run, "batch", "--stage", "dpo", "--step", 1)
    assert re.match(r"dpo, step 1: \d+ documents, micro-batches: 1, ", text)
    titles = re.findall(r"── document \d+: (\w+) of pair (\w+), reference log-probability (-[\d.]+)", text)
    pair = next(pair for pair in store.read(smoke_run / "dpo" / "data", Pair) if pair.id == titles[0][1])
    assert [title[0] for title in titles] == ["chosen", "rejected"]
    assert [float(title[2]) for title in titles] == pytest.approx(
        [pair.chosen_ref_logprob, pair.rejected_ref_logprob], abs=1e-3
    )
    assert text != shown(command, smoke_run, "batch", "--stage", "dpo")


def test_the_rollouts_of_a_generation(command, smoke_run):
    text = shown(command, smoke_run, "batch", "--stage", "rlvr")
    entry = journal.read(smoke_run / "rlvr")[-1]
    head = rf"rlvr, generation 2: \d+ prompts, {entry['sampled']} rollouts, learned from {entry['learned_from']}\n"
    assert re.match(head, text)
    assert re.search(r"^  - .*\(wrong \(", text, re.MULTILINE)
    every = shown(command, smoke_run, "batch", "--stage", "rlvr", "--count", 999)
    fates = re.findall(r"^problem .* of \d+ right(?:, dropped: (.*))?$", every, re.MULTILINE)
    assert fates == sorted(fates, key=bool)  # what was learned from comes first
    reasons = {"none_right": "none right", "none_wrong": "none wrong", "too_easy": "too easy", "groups": ""}
    assert {key: fates.count(reason) for key, reason in reasons.items()} == {key: entry[key] for key in reasons}
    first = shown(command, smoke_run, "batch", "--stage", "rlvr", "--step", 0)
    assert first.startswith("rlvr, generation 0: ")


def test_a_terminal_gets_colours_instead_of_brackets(smoke_run):
    def on_terminal(what: str) -> str:
        file = io.StringIO()
        look = Look(smoke_run, recipe.read(smoke_run / "recipe.toml", tasks.sections()))
        console = Console(file=file, force_terminal=True, color_system="standard", width=100)
        show(Look(look.root, look.recipe, out=console), what)
        return file.getvalue()

    batch = on_terminal("batch")
    assert "\x1b[2m<|user|>" in batch
    assert "\x1b[7;32m<|end|>" in batch
    assert "\x1b[1;32m" in batch
    assert "[<|end|>]" not in batch
    assert "\x1b[1;32mrollout" in on_terminal("rollouts")


def test_hostile_text_cannot_reach_the_terminal(command, tmp_path):
    text = "A: 4\x1b[2J\x1b]0;owned\x07 \u202e [bold]not markup[/bold]"
    row = {"question": "What is 2 + 2?", "gold": "4", "completion": text}
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    changes = (f'data.problems=["{tmp_path / "r.jsonl"}"]', 'teacher.url=""')
    words = [word for change in changes for word in ("--set", change)]
    smoke = ROOT / "recipes" / "smoke.toml"
    assert command("gather", smoke, "--out", tmp_path / "out", "--until", "measures", *words)[0] == 0
    out = shown(command, tmp_path / "out", "rollouts")
    assert "A: 4\ufffd[2J\ufffd]0;owned\ufffd \ufffd [bold]not markup[/bold]\n" in out
    rollout = store.read(tmp_path / "out" / "rollouts", Rollout)[0]
    status, story, _ = command("why", rollout.id, "--run", tmp_path / "out")
    assert status == 0 and "owned" in story
    assert "\x1b" not in story and "\x07" not in story


def test_messages(command, smoke_run, tmp_path):
    def refused(*words: object) -> tuple[int, str]:
        status, out, err = command("show", *words)
        assert out == ""
        return status, err.rstrip("\n")

    assert refused(smoke_run, "rolouts") == (2, "show rolouts: there is no such view. Did you mean rollouts?")
    assert refused(smoke_run, "x") == (
        2,
        "show x: there is no such view. Known here: problems, rollouts, pair, batch, funnel.",
    )
    assert refused(smoke_run, "batch", "--stage", "sfd") == (
        2,
        "--stage sfd: there is no such stage. Did you mean sft?",
    )
    assert refused(smoke_run, "funnel", "--id", "a") == (
        2,
        "show funnel --id: this view takes no id. `algorist why a` follows it everywhere.",
    )
    last = journal.read(smoke_run / "sft")[-1]["step"]
    assert refused(smoke_run, "batch", "--step", 99) == (
        4,
        f"{smoke_run}/sft: has no step 99. Name one from 0 to {last} with --step.",
    )
    assert refused(smoke_run, "batch", "--stage", "rlvr", "--step", 7) == (
        4,
        f"{smoke_run}: rlvr has sampled 3 generations so far. Run it further, or name another --step.",
    )
    assert refused(smoke_run, "--id", "zz") == (
        2,
        "show --id zz: of which view? `algorist why zz` follows it everywhere.",
    )
    assert refused(smoke_run, "pair", "--id", "zz") == (
        3,
        f"{smoke_run}: no record of this view has the id zz. `algorist why zz --run {smoke_run}` looks everywhere.",
    )
    assert refused(tmp_path) == (
        4,
        f"{tmp_path}: is no run (there is no recipe.toml). Name the folder that algorist run wrote.",
    )
    shutil.copy(smoke_run / "recipe.toml", tmp_path)
    assert refused(tmp_path, "rollouts") == (
        4,
        f"{tmp_path}: has no problems yet. Run the command that made the folder until problems is done.",
    )
    assert refused(tmp_path, "funnel") == (4, f"{tmp_path}: no data set is finished yet. Run the recipe first.")
    assert refused(tmp_path, "batch", "--stage", "dpo") == (
        4,
        f"{tmp_path}: the stage dpo has no data yet. Run the recipe until dpo first.",
    )


def test_a_broken_shard_is_named(command, smoke_run, tmp_path):
    shutil.copy(smoke_run / "recipe.toml", tmp_path)
    shutil.copytree(smoke_run / "problems", tmp_path / "problems")
    shard = tmp_path / "problems" / "00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-8])
    status, _, err = command("show", tmp_path, "problems")
    assert status == RecordError.exit_status
    assert err.startswith(f"{shard}: not readable as Parquet (")
    assert err.endswith("Delete the task's folder to make it again.\n")
