"""The doctor: a sound run passes, and each thing that ruins a model in silence is refused, word for word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorist import recipe as recipes
from algorist import store, tasks, tokens
from algorist.doctor import cases, examine
from algorist.errors import RecordError, RunError
from algorist.model import checkpoints
from algorist.model.batches import Batch, PairBatch
from algorist.model.chat import Chat, load_tokenizer
from algorist.model.policy import Policy
from algorist.recipe import Recipe
from algorist.records import Checkpoint, Problem, Rollout, Sample, content_id
from algorist.stage import Run, Stage, Step
from algorist.stages import dpo, midtrain, rlvr, sft
from algorist.tokens import Corpus
from algorist.toy import words
from conftest import ROOT
from model import tiny, wild

SMOKE = ROOT / "recipes" / "smoke.toml"
PARENTS = {"midtrain": "base", "sft": "midtrain", "dpo": "sft", "rlvr": "dpo"}
AGAIN = "to make it again."
Ids = list[int]


def recipe(*overrides: str) -> Recipe:
    return recipes.read(SMOKE, tasks.sections(), overrides)


def opened(root: Path, stage: Stage = sft.STAGE) -> Run:
    """A stage of a smoke run as training opens it."""
    parent = root / PARENTS[stage.name] / "checkpoint"
    return Run(recipe(), root, stage, str(parent), Chat.of(load_tokenizer(str(parent)), "{problem}"), "float32")


def policy_of(run: Run) -> Policy:
    return checkpoints.open_policy(run.parent, precision="float32")


def refusal(run: Run, policy: Policy | None = None) -> str:
    with pytest.raises(RunError) as error:
        examine.examine(run, policy)
    return str(error.value)


@pytest.fixture
def copy(smoke_run: Path, tmp_path: Path) -> Path:
    """A smoke run of one's own."""
    return shutil.copytree(smoke_run, tmp_path / "run", ignore=shutil.ignore_patterns("start", "superseded"))


def rewrite(root: Path, change: Callable[[Sample, Ids], tuple[Ids, int]]) -> None:
    """Other token ids and prompt lengths for the samples of stage 2."""
    folder = root / "sft" / "data"
    samples = store.read(folder, Sample)
    made = [change(one, ids.tolist()) for one, ids in zip(samples, Corpus.open(folder, Sample), strict=True)]
    records = [
        replace(one, num_tokens=len(ids), prompt_len=prompt) for one, (ids, prompt) in zip(samples, made, strict=True)
    ]
    tokens.write(folder, Sample, records, [np.array(ids, np.int32) for ids, _ in made])


def first(run: Run) -> cases.Case:
    step = cases.of_stage(run)
    assert step is not None
    return step.cases[0]


def weighing(weigh: Callable[[Batch], Tensor]) -> Stage:
    """Stage 2 with other weights in its steps: what a mistake in laying them out comes to."""

    def steps(run: Run, policy: Policy) -> Iterator[Step]:
        for step in midtrain.steps(run, policy):
            yield replace(step, batches=tuple(replace(batch, weights=weigh(batch)) for batch in step.batches))

    return replace(sft.STAGE, steps=steps)


# --- what is sound ---


@pytest.mark.parametrize("stage", [midtrain.STAGE, sft.STAGE, dpo.STAGE])
def test_a_sound_stage_passes(smoke_run: Path, stage: Stage) -> None:
    run = opened(smoke_run, stage)
    policy = policy_of(run)
    report = examine.examine(run, policy)
    assert [found.what for found in report.findings] == [
        *("trained", "bos", "prompt", "end", "thought", "ids", "documents"),
    ]
    assert all(found.ok for found in report.findings)
    said = {found.what: found.said for found in report.findings}
    step = next(stage.steps(run, policy))
    rows = [batch.rows if isinstance(batch, PairBatch) else batch for batch in step.batches]
    weights = torch.cat([batch.weights for batch in rows])
    documents, trained = sum(len(batch.bounds) - 1 for batch in rows), int((weights > 0).sum())
    share = f"{100 * trained / len(weights):.1f} % of {len(weights):,} tokens"
    assert said["trained"] == f"{share}, all of every response; the weights of the step sum to 1"
    assert said["end"] == (
        "<|end|> (3): 16 of 16 documents end in it, with weight; sampling stops at it, and servers do "
        "(generation_config.json)"
    )
    assert said["bos"] == "0 of 16 documents begin with <|endoftext|>, none has it inside"
    assert said["prompt"] == "16 of 16 are what the sampler is asked, id by id"
    assert said["thought"].startswith("16 of 16 responses think, in ")
    assert said["thought"].endswith(" tokens; 16 of 16 are their rollout's text to the letter")
    assert said["documents"].startswith("4 in a row of ")
    of = "16 documents" if documents == 16 else f"16 of {documents} documents"
    whole = f"{100 * trained / len(weights):.0f} % of {len(weights):,} tokens trained"
    assert report.line == f"{stage.name}: examined: {of}, {whole}, each ends in <|end|>, none leaks"


def test_the_prompts_of_stage_4_pass(smoke_run: Path) -> None:
    run = opened(smoke_run, rlvr.STAGE)
    report = examine.examine(run, None)
    assert [found.what for found in report.findings] == ["bos", "end", "ids"]
    problems = store.read(run.data, Problem)[:16]
    assert report.line == f"rlvr: examined: {len(problems)} prompts, responses stop at <|end|>"
    assert report.document == f"<|user|>{problems[0].statement}<|end|><|assistant|>"


def test_nothing_is_written_and_no_dice_are_thrown(copy: Path) -> None:
    """A run that was examined equals one that was not."""
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    run = opened(copy)
    examine.examine(run, policy_of(run))
    assert torch.equal(torch.get_rng_state(), state)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_check_prints_a_table_for_each_stage(command, smoke_run: Path) -> None:
    status, out, err = command("check", SMOKE, "--out", smoke_run)
    assert (status, err) == (0, "")
    tables = out.partition("\nscores/rlvr          done\n")[2].split("\n\n")
    assert [table.split(":")[0].strip() for table in tables] == ["midtrain", "sft", "dpo", "rlvr"]
    head, *rows, document = tables[1].rstrip().splitlines()
    assert head.startswith("sft: 16 documents, ") and head.endswith(" tokens in its first step; 16 looked at")
    assert [row.split()[:2] for row in rows] == [
        [what, "ok"] for what in ("trained", "bos", "prompt", "end", "thought", "ids", "documents")
    ]
    case = first(opened(smoke_run))
    assert document.startswith(f"  <|user|>{case.told.statement[:60]}") and document.endswith("[}][.][<|end|>]")


def test_check_makes_a_sample_where_there_is_no_run(command, tmp_path: Path) -> None:
    status, out, _ = command("check", SMOKE, "--out", tmp_path / "run")
    assert status == 0
    where = f"midtrain, sft, dpo, rlvr (no data yet: a sample, of {SMOKE})"
    _, rows = out.split(f"\n{where}: ")
    assert rows.splitlines()[-2] == "  documents  -        whether they leak is looked at once there is a checkpoint"
    assert "3 of 3 documents end in it, with weight; sampling stops at it\n" in rows
    assert not (tmp_path / "run").exists()


def test_check_makes_a_sample_of_the_rollouts_of_a_run(copy: Path) -> None:
    """Before any stage has data, with the base model: whether documents leak is looked at already."""
    for name in ("midtrain", "sft", "dpo", "rlvr"):
        shutil.rmtree(copy / name)
    (report,) = examine.reports(recipe(), copy)
    assert report.title.startswith(f"midtrain, sft, dpo, rlvr (no data yet: a sample, of {copy / 'rollouts'}): 4 doc")
    assert [found.ok for found in report.findings] == [True] * 7
    assert report.findings[-1].said.startswith("4 in a row of ")


TRACES = (
    'name = "mine"\n[model]\nbase = "toy"\nprompt = "{problem}"\n[data]\nproblems = ["%s"]\n[teacher]\nurl = "%s"\n'
)


def test_check_makes_a_sample_of_traces_in_a_file(command, tmp_path: Path) -> None:
    rows = tmp_path / "traces.jsonl"
    thought = "<|begin_of_thought|>\n\n2 + 2 = 4.\n\n<|end_of_thought|>\n\nThe answer is \\boxed{4}."
    cut = "<|begin_of_thought|>\n\n2 + 2"
    lines = [{"question": "What is 2 + 2?", "answer": "4", "completion": text} for text in (cut, thought)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    mine = tmp_path / "mine.toml"
    mine.write_text(TRACES % (rows, "http://127.0.0.1:9/v1"))
    status, out, _ = command("check", mine, "--out", tmp_path / "run")
    assert status == 0
    assert f"\nmidtrain, sft, dpo, rlvr (no data yet: a sample, of {mine}): 1 documents, " in out
    assert "\n  thought    ok       1 of 1 responses think, in " in out


def test_check_says_where_there_is_nothing_to_look_at(command, tmp_path: Path) -> None:
    """Problems without responses, and a teacher that is not asked for it."""
    rows = tmp_path / "p.jsonl"
    rows.write_text('{"question": "What is 2 + 2?", "answer": "4"}\n')
    (tmp_path / "mine.toml").write_text(TRACES % (rows, "http://127.0.0.1:9/v1"))
    status, out, _ = command("check", tmp_path / "mine.toml", "--out", tmp_path / "run")
    assert status == 0 and out.endswith("\n\nnothing to look at yet: run `algorist gather` first\n")


# --- before the first step of a run ---


def begun_again(root: Path) -> None:
    """Stage 2 with its data, as if nothing had been trained yet."""
    shutil.rmtree(root / "sft" / "checkpoint")
    (root / "sft" / "journal.jsonl").unlink()
    mark = root / "sft" / "task.json"
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "done": False}))


def test_run_says_what_was_examined(command, copy: Path) -> None:
    begun_again(copy)
    status, _, err = command("run", SMOKE, "--out", copy, "--until", "sft")
    assert status == 0
    said = [line for line in err.splitlines() if ": examined: " in line]
    assert said == [examine.examine(opened(copy), policy_of(opened(copy))).line]


def test_run_refuses_before_the_first_step(command, copy: Path) -> None:
    begun_again(copy)
    rewrite(copy, lambda sample, ids: (ids[:-1], sample.prompt_len))
    status, out, err = command("run", SMOKE, "--out", copy, "--until", "sft")
    rollout = first(opened(copy)).told.rollout_id
    assert (status, out) == (4, "")
    assert err.splitlines()[-1] == (
        f"{copy / 'sft' / 'data'}: 16 of 16 documents (such as that of rollout {rollout}) do not end in <|end|>, the "
        "end of turn of the chat template, but in ., so the model would not learn to stop. Delete the folder "
        f"{copy / 'sft' / 'data'} {AGAIN}"
    )
    assert not (copy / "sft" / "checkpoint").exists() and not (copy / "sft" / "journal.jsonl").exists()
    status, out, _ = command("check", SMOKE, "--out", copy)
    assert status == 1
    assert f"\n  end        refused  {err.splitlines()[-1]}\n" in out


def test_a_run_that_goes_on_is_not_examined_again(copy: Path) -> None:
    said: list[str] = []
    examine.before_first_step(opened(copy), said.append)  # it has its checkpoint
    (copy / "sft" / "checkpoint").rename(copy / "sft" / "step-0000001")
    examine.before_first_step(opened(copy), said.append)
    assert said == []
    shutil.rmtree(copy / "sft" / "step-0000001")
    examine.before_first_step(opened(copy), said.append)
    assert len(said) == 1


# --- what is refused ---


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # no mean over no tokens
def test_nothing_is_trained(copy: Path) -> None:
    rewrite(copy, lambda sample, ids: (ids, len(ids)))
    run = opened(copy)
    count = cases.of_stage(run).tokens
    assert refusal(run) == (
        f"{run.data}: none of the {count:,} tokens of the first step has weight, so nothing would be learned; weight "
        f"was expected on every token of a response. Delete the folder {run.data} {AGAIN}"
    )


def test_weights_that_do_not_sum_to_one(smoke_run: Path) -> None:
    run = opened(smoke_run, weighing(lambda batch: batch.weights * 8))
    why = "every loss and gradient would be scaled by it. Divide them by their sum where the stage lays out a step."
    assert refusal(run) == f"{run.data}: the weights of the first step sum to 8, 1 was expected: {why}"


def test_a_weight_that_is_no_number(smoke_run: Path) -> None:
    def broken(batch: Batch) -> Tensor:
        return torch.cat([batch.weights[:-2], torch.tensor([float("nan")]), batch.weights[-1:]])

    assert ": the weights of the first step sum to nan, 1 was expected: " in refusal(
        opened(smoke_run, weighing(broken))
    )


def test_the_end_of_turn_has_no_weight(smoke_run: Path) -> None:
    """As where pad is the end of turn and is masked away."""

    def masked(batch: Batch) -> Tensor:
        weights = batch.weights * (batch.tokens != 3)
        return weights / weights.sum()

    run = opened(smoke_run, weighing(masked))
    rollout = first(run).told.rollout_id
    assert refusal(run) == (
        f"{run.data}: the end of turn <|end|> has no weight in 16 of 16 documents (such as that of rollout {rollout}), "
        f"so the model would not learn to stop; weight was expected in each. Delete the folder {run.data} {AGAIN}"
    )


def test_thoughts_without_weight(smoke_run: Path) -> None:
    """As by a mask of the assistant's turn that begins behind the thought."""
    mark = words.tokenizer().convert_tokens_to_ids(" </think>")

    def masked(batch: Batch) -> Tensor:
        weights = batch.weights.clone()
        for start, stop in zip(batch.bounds, batch.bounds[1:], strict=False):
            behind = (batch.tokens[start:stop] == mark).nonzero()
            weights[start : start + int(behind[0])] = 0
        return weights / weights.sum()

    run = opened(smoke_run, weighing(masked))
    step = cases.of_stage(run)
    count = sum(int((case.weights[case.start :] == 0).sum()) for case in step.cases)
    assert count > 100
    assert refusal(run) == (
        f"{run.data}: {count} tokens inside of 16 of 16 responses (such as that of rollout "
        f"{step.cases[0].told.rollout_id}) have no weight, so a part of what was said would be read and not learned. "
        f"Delete the folder {run.data} {AGAIN}"
    )


def test_an_end_inside_of_a_response(copy: Path) -> None:
    rewrite(copy, lambda sample, ids: ([*ids, 3], sample.prompt_len))
    run = opened(copy)
    assert refusal(run) == (
        f"{run.data}: the end of turn <|end|> stands inside of 16 of 16 responses (such as that of rollout "
        f"{first(run).told.rollout_id}), at their end alone was expected. Take it out of the source."
    )


def test_a_bos_twice_or_inside(copy: Path, smoke_run: Path) -> None:
    rewrite(copy, lambda sample, ids: ([0, 0, *ids], sample.prompt_len + 2))
    run = opened(copy)
    rollout = first(run).told.rollout_id
    assert refusal(run) == (
        f"{run.data}: 16 of 16 documents (such as that of rollout {rollout}) begin with two BOS tokens "
        "(<|endoftext|>), one at most was expected. Let the chat template alone write it, and delete the folder to "
        "make it again."
    )
    rewrite(copy, lambda sample, ids: ([*ids[2:-1], 0, ids[-1]], sample.prompt_len))
    assert refusal(run) == (
        f"{run.data}: a BOS token (<|endoftext|>) stands inside of 16 of 16 documents (such as that of rollout "
        f"{rollout}), at the start alone was expected. Take it out of the source."
    )


def test_a_template_that_writes_two(command, copy: Path) -> None:
    """Refused where the chat is opened, before a document is looked at; by check in the same words."""
    for template in copy.glob("*/checkpoint/chat_template.jinja"):
        template.write_text("<|endoftext|>" * 2 + words.TEMPLATE)
    status, _, err = command("check", SMOKE, "--out", copy)
    assert status == 2
    assert err.startswith(f"{copy / 'base' / 'checkpoint'}: a prompt begins with two BOS tokens (<|endoftext|>). ")


def test_another_prompt_than_the_sampler_is_asked(command, copy: Path) -> None:
    words_before = ("--set", 'model.prompt="Tom: {problem}"')
    status, out, _ = command("check", SMOKE, "--out", copy, *words_before)
    assert status == 1
    case = first(opened(copy, midtrain.STAGE))
    told = case.told.statement.split()[0]
    refused = [line for line in out.splitlines() if line.startswith("  prompt     refused  ")]
    assert len(refused) == 2  # of stages 1 and 2; stage 3 says itself that its reference is another's
    assert (
        f"\ndpo: cannot be laid out\n  data       refused  {copy / 'dpo' / 'data' / 'reference.json'}: the ref" in out
    )
    start = f"{copy / 'midtrain' / 'data'}: the prompts of 16 of 16 documents (such as that of rollout "
    assert (
        refused[0]
        .split("refused  ")[1]
        .startswith(
            f'{start}{case.told.rollout_id}) are not what the sampler is asked: from token 1 on one says "{told}'
        )
    )
    assert refused[0].endswith("was expected. Delete the folder to make it again.")
    assert '", "Tom: ' in refused[0]


def test_a_template_that_strips_thoughts(copy: Path) -> None:
    """Data made by rendering whole conversations, through a template that keeps what stands behind a thought."""
    tokenizer = load_tokenizer(str(copy / "midtrain" / "checkpoint"))
    content = "message['content']"
    tokenizer.chat_template = words.TEMPLATE.replace(content, f"{content}.split('</think>')[-1]")
    problems = {one.id: one for one in store.read(copy / "problems", Problem)}
    rollouts = {one.id: one for one in store.read(copy / "rollouts", Rollout)}

    def rendered(sample: Sample, _: Ids) -> tuple[Ids, int]:
        asked = {"role": "user", "content": problems[sample.problem_id].statement}
        said = {"role": "assistant", "content": rollouts[sample.rollout_id].text}
        text = tokenizer.apply_chat_template([asked, said], tokenize=False)
        return tokenizer(text, add_special_tokens=False).input_ids, sample.prompt_len

    rewrite(copy, rendered)
    run = opened(copy)
    told = first(run).told
    left = len(told.text.split("</think>")[1])
    assert refusal(run) == (
        f"{run.data}: the thinking text was stripped from 16 of 16 documents (such as that of rollout "
        f"{told.rollout_id}): of {len(told.text)} characters that were said {left} are left there. "
        "Delete the folder to make it again."
    )


def test_a_response_that_is_not_its_rollouts(copy: Path) -> None:
    rewrite(copy, lambda sample, ids: ([*ids[:-3], ids[-1]], sample.prompt_len))
    run = opened(copy)
    told = first(run).told
    assert refusal(run) == (
        f"{run.data}: not all that the rollouts say stands in 16 of 16 documents (such as that of rollout "
        f"{told.rollout_id}): of {len(told.text)} characters that were said {len(told.text) - 2} are left there. "
        "Delete the folder to make it again."
    )


def test_a_rollout_that_is_gone(copy: Path) -> None:
    run = opened(copy)
    rollouts = store.read(copy / "rollouts", Rollout)
    gone = first(run).told.rollout_id
    store.write(copy / "rollouts", Rollout, [one for one in rollouts if one.id != gone])
    with pytest.raises(RecordError) as error:
        examine.look(run, None)
    assert str(error.value) == (
        f"{copy / 'rollouts' / '00000.parquet'}: holds no rollout {gone}, of which a document of the stage was made. "
        "Delete the folder of the stage's data to make it again."
    )


def test_token_ids_beyond_the_vocabulary(copy: Path) -> None:
    run = opened(copy)
    size = json.loads((Path(run.parent) / "config.json").read_text())["vocab_size"]
    rewrite(copy, lambda sample, ids: ([*ids[:-2], size, ids[-1]], sample.prompt_len))
    report = examine.look(run, policy_of(run))
    assert report.refused[-1] == (
        f"{run.data}: token {size} is none of the {size} that the model knows. Name a model with its own tokenizer, "
        "and delete the folder to make it again."
    )
    assert report.findings[-1].what == "ids"  # the model is not asked about what it does not know


def test_positions_that_do_not_begin_anew(smoke_run: Path) -> None:
    def steps(run: Run, policy: Policy) -> Iterator[Step]:
        for step in midtrain.steps(run, policy):
            rows = [replace(batch, positions=torch.arange(len(batch.tokens))) for batch in step.batches]
            yield replace(step, batches=tuple(rows))

    run = opened(smoke_run, replace(sft.STAGE, steps=steps))
    rollout = cases.of_stage(run).cases[1].told.rollout_id
    assert refusal(run) == (
        f"{run.data}: positions do not count up from 0 in 15 of 16 documents (such as that of rollout {rollout}). "
        "Lay out the step with lay_out of model/batches.py."
    )


def known_positions(folder: str, count: int) -> None:
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": count}))


def test_a_document_longer_than_the_model_knows(copy: Path) -> None:
    run, last = opened(copy), opened(copy, rlvr.STAGE)
    known_positions(run.parent, 64)
    longest = cases.of_stage(run).longest
    assert refusal(run) == (
        f"{run.data}: a document comes to {longest} tokens, and the model knows 64 positions. "
        "Lower [sft] sequence_length."
    )
    path = Path(run.parent) / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    path.write_text(json.dumps(config))
    assert examine.examine(run, None).findings[5].said.endswith(" of 256")
    known_positions(last.parent, 64)
    longest = max(len(last.chat.prompt_ids(one.statement)) for one in store.read(last.data, Problem)[:16])
    assert refusal(last) == (
        f"{last.data}: a document comes to {longest + 24} tokens, and the model knows 64 positions. "
        "Lower [rlvr] max_tokens."
    )


@pytest.mark.parametrize("stage", [sft.STAGE, rlvr.STAGE])
def test_a_checkpoint_that_names_another_end(copy: Path, stage: Stage) -> None:
    run = opened(copy, stage)
    path = Path(run.parent) / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [0]}))
    assert refusal(run) == (
        f"{path}: stops at <|endoftext|>, not at <|end|>, in which every response is trained to end: what is sampled "
        "would go on behind it. Add 3 to eos_token_id there."
    )


def test_a_sampler_that_stops_elsewhere(smoke_run: Path) -> None:
    run = opened(smoke_run)
    run = replace(run, chat=replace(run.chat, stops=frozenset({0})))
    assert refusal(run).startswith("the sampler: stops at <|endoftext|>, not at <|end|>, ")


class Leaking(Policy):
    """Attends as if a row were one document."""

    def hidden(self, batch: Batch) -> Tensor:
        return super().hidden(replace(batch, bounds=(0, len(batch.tokens))))


class Astray(Policy):
    """Keeps documents apart, but reads those of a row of several at other positions than alone."""

    def hidden(self, batch: Batch) -> Tensor:
        return super().hidden(replace(batch, positions=batch.positions * (len(batch.bounds) - 1)))


FAMILIES = "Take a model of another family; known to be exact: Llama, OLMo 2, Phi-3 and Phi-4, Qwen2 and 2.5, Qwen3, "


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_document_leaks(smoke_run: Path, precision: str) -> None:
    run = opened(smoke_run)
    model = policy_of(run).model
    said = refusal(run, Leaking(model, precision=precision))
    begin = f"{run.parent}: a document leaks: other tokens in one document of a row moved the log-probabilities of "
    assert said.startswith(f"{begin}another by ") and said.endswith(f" nats, 0 was expected. {FAMILIES}SmolLM3.")
    assert examine.examine(run, Policy(model, precision=precision)).line.endswith(", none leaks")


def test_a_document_that_is_another_alone(tmp_path: Path) -> None:
    run, policy = made(tmp_path, words.tokenizer(), THOUGHTS)
    said = refusal(run, Astray(policy.model))
    assert said.startswith(f"{run.parent}: log-probabilities of a document in a row with others are ")
    assert said.endswith(f" nats a token from those of it alone, at most 0.01 was expected. {FAMILIES}SmolLM3.")


# --- other tokenizers ---


def made(
    root: Path, tokenizer: Any, texts: Sequence[str], ids_of: Callable[[Chat, str], Sequence[int]] | None = None
) -> tuple[Run, Policy]:
    """Stage 2 with documents of these responses to one problem, and a small model with the tokenizer's vocabulary."""
    chat, problem = Chat.of(tokenizer, "Think. {problem}"), Problem.of("What is 2 + 2?", "4")
    rollouts = [Rollout.of(problem.id, text, "teacher", index=index) for index, text in enumerate(texts)]
    store.write(root / "problems", Problem, [problem])
    store.write(root / "rollouts", Rollout, rollouts)
    samples, sequences, prompt = [], [], chat.prompt_ids(problem.statement)
    for one in rollouts:
        ids = [*prompt, *chat.response_ids(one.text)] if ids_of is None else ids_of(chat, one.text)
        sequences.append(np.array(ids, np.int32))
        samples.append(Sample(content_id("sample", one.id), problem.id, one.id, len(ids), len(prompt)))
    tokens.write(root / "sft" / "data", Sample, samples, sequences)
    policy = Policy(tiny.build("Phi3", vocab_size=len(tokenizer), hidden_size=8))
    parent = root / "midtrain" / "checkpoint"
    checkpoints.save(parent, policy, words.tokenizer(), Checkpoint("", "midtrain", 1))
    for name in ("config.json", "generation_config.json"):  # as it is saved with its own tokenizer, which takes long
        path = parent / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": sorted(chat.stops)}))
    asked = recipe("model.prompt=Think. {problem}")
    return Run(asked, root, sft.STAGE, str(parent), chat, "float32"), policy


THOUGHTS = [
    f"<think>\n2 + {index} is {index + 2}, so \u2264 \u4eac.\n</think>\nIt is \\boxed{{{index + 2}}}."
    for index in range(5)
]


@pytest.mark.parametrize("tokenizer", [wild.phi_4_mini, wild.phi_3_mini, wild.qwen_3, wild.deepseek])
def test_real_tokenizers_pass(tmp_path: Path, tokenizer: Callable[[], Any]) -> None:
    """Ends, BOS and openings of thoughts in all their ways."""
    run, policy = made(tmp_path, tokenizer(), THOUGHTS)
    report = examine.examine(run, policy)
    assert all(found.ok for found in report.findings)
    end = run.chat.tokenizer.convert_ids_to_tokens(run.chat.end)
    assert report.line.endswith(f"tokens trained, each ends in {end}, none leaks")
    assert report.findings[4].said.startswith("5 of 5 responses think, in ")
    assert report.findings[4].said.endswith("; 5 of 5 are their rollout's text to the letter")


def test_the_end_of_turn_trap_of_phi_4_mini(tmp_path: Path) -> None:
    """Its tokenizer names <|endoftext|> as eos: whoever appends that teaches an end at which no turn ends."""

    def trapped(chat: Chat, text: str) -> Ids:
        asked = chat.prompt_ids("What is 2 + 2?")
        return [*asked, *chat.response_ids(text, ended=False), chat.tokenizer.eos_token_id]

    run, _ = made(tmp_path, wild.phi_4_mini(), THOUGHTS, trapped)
    assert refusal(run).endswith(
        " do not end in <|end|>, the end of turn of the chat template, but in <|endoftext|>, so the model would not "
        f"learn to stop. Delete the folder {run.data} {AGAIN}"
    )
    path = Path(run.parent) / "generation_config.json"
    path.write_text('{"eos_token_id": 199999}')
    assert refusal(run) == (
        f"{path}: stops at <|endoftext|>, not at <|end|>, in which every response is trained to end: what is sampled "
        "would go on behind it. Add 200020 to eos_token_id there."
    )


def test_the_template_of_deepseek_strips_thoughts(tmp_path: Path) -> None:
    def rendered(chat: Chat, text: str) -> Ids:
        turns = [{"role": "user", "content": "Think. What is 2 + 2?"}, {"role": "assistant", "content": text}]
        prompt = chat.prompt_ids("What is 2 + 2?")
        whole = chat.tokenizer.apply_chat_template(turns, tokenize=False)
        answer = whole[whole.index("<\uff5cAssistant\uff5c>") + len("<\uff5cAssistant\uff5c>") :]
        return [*prompt, *chat.tokenizer(answer, add_special_tokens=False).input_ids]

    run, _ = made(tmp_path, wild.deepseek(), THOUGHTS, rendered)
    assert "the thinking text was stripped from 5 of 5 documents (such as that of rollout " in refusal(run)


@pytest.mark.parametrize("real", [False, True])
def test_an_opened_thought_that_no_response_closes(tmp_path: Path, real: bool) -> None:
    """A template that opens the thought, and a teacher whose server has parsed its thoughts away."""
    tokenizer = wild.deepseek() if real else words.tokenizer()
    if not real:
        tokenizer.chat_template = words.TEMPLATE.replace("'<|assistant|>'", "'<|assistant|><think>'")
    run, _ = made(tmp_path, tokenizer, ["The answer is \\boxed{4}."] * 3)
    assert refusal(run) == (
        f"{run.data}: the chat template opens a thought (<think>) that none of 3 responses closes: the thinking text "
        "was stripped before they came here. Ask a teacher that gives its thoughts, or name a source that has them."
    )


def test_what_a_tokenizer_cannot_give_back_is_told(tmp_path: Path) -> None:
    """The toy's knows no signs of other worlds; what it makes of them is what the sampler would see too."""
    run, policy = made(tmp_path, words.tokenizer(), [*THOUGHTS, "The answer is \\boxed{4}."])
    said = examine.examine(run, policy).findings[4].said
    assert said.startswith("5 of 6 responses think, ")
    assert said.endswith("; 1 of 6 are their rollout's text to the letter, the others what the tokenizer knows of it")


def test_a_template_that_writes_the_day(tmp_path: Path) -> None:
    """Data that was made yesterday is not refused, which another prompt is."""
    tokenizer = wild.phi_4_mini()
    template = tokenizer.chat_template
    tokenizer.chat_template = "<|system|>Today Date: 26 Jul 2024<|end|>" + template
    run, _ = made(tmp_path, tokenizer, THOUGHTS)
    for today in ("27 Jul 2024", "1 August 2025"):
        tokenizer.chat_template = f"<|system|>Today Date: {today}<|end|>" + template
        assert examine.examine(run, None).findings[2].said == (
            "5 of 5 are what the sampler is asked, id by id, but for the day that the chat template writes into 5"
        )
    tokenizer.chat_template = template
    assert ' one says "<|system|>Today Date: 26 Jul 2024<|end|><|user|>' in refusal(run)


def test_a_single_document_is_packed_with_its_own_tokens_backwards(tmp_path: Path) -> None:
    run, policy = made(tmp_path, words.tokenizer(), ["2 + 2 = 4. The answer is \\boxed{4}."])
    report = examine.examine(run, policy)
    assert report.findings[-1].said.startswith("2 in a row of ")
    assert "a document leaks" in refusal(run, Leaking(policy.model))
