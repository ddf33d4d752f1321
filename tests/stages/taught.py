"""Stage 4 at hand: a tiny model that was taught what to answer, and the pieces of a run around it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from algorist import store
from algorist.generate.rollouts import Native, Speaker
from algorist.generate.sampling import Sampling
from algorist.model import checkpoints
from algorist.model.batches import Batch, Document, GroupBatch, token_mean
from algorist.model.chat import Chat
from algorist.model.policy import Policy
from algorist.recipe import Recipe
from algorist.records import Checkpoint, Problem, Question
from algorist.stage import Run, Step
from algorist.stages import groups as grouping
from algorist.stages import prompts as prompting
from algorist.stages import rlvr
from algorist.stages.groups import Group
from algorist.stages.prompts import Deck
from algorist.stages.sampler import Sampler
from algorist.stages.watch import Watch
from algorist.toy import base, words
from algorist.verify import pool as verify
from algorist.verify.conventions import Conventions
from algorist.verify.pool import Pool

ASKED = "How many points does {} have?"
EASY = Problem.of(ASKED.format("Tom"), "3")  # always right
MIXED = Problem.of(ASKED.format("Ann"), "5")  # right one time in three
WRONG = Problem.of(ASKED.format("Bob"), "8")  # never right
UNEVEN = Problem.of(ASKED.format("Eva"), "9")  # never right, now short and now long
UNJUDGED = Problem.of("How many points does Tom win?", "")  # the gold answer cannot be read
ALL = [EASY, MIXED, WRONG, UNEVEN, UNJUDGED]
LESSONS = {
    EASY.id: ["The answer is \\boxed{3}."],
    MIXED.id: ["The answer is \\boxed{5}.", "The answer is \\boxed{6}.", "The answer is \\boxed{7}."],
    WRONG.id: ["The answer is \\boxed{1}."],
    UNEVEN.id: ["\\boxed{2}.", "Let me think again. That is right. That does not count. \\boxed{2}."],
    UNJUDGED.id: ["The answer is \\boxed{4}."],
}
Parent = tuple[Path, Chat]


def parent(folder: Path) -> Parent:
    """A model of one layer that has learned the lessons by heart."""
    tokenizer = words.tokenizer()
    chat = Chat.of(tokenizer, "{problem}")
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "mlp_size": 32, "context": 64}
    policy = Policy(base.model(len(tokenizer), 1, **shape))
    documents = []
    for problem in ALL:
        prompt = chat.prompt_ids(problem.statement)
        for text in LESSONS[problem.id]:
            tokens = prompt + chat.response_ids(text)
            documents += [Document.of(tokens, len(prompt))] * (6 // len(LESSONS[problem.id]))
    (rows,) = token_mean(documents, 10_000)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.01)
    for _ in range(120):
        loss = -(rows.weights * policy.logprobs(rows)).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    checkpoints.save(folder, policy, tokenizer, Checkpoint("", "dpo", 120))
    return folder, chat


def made(root: Path, parent: Parent, learned: list[Problem] | None = None, batch_size: int = 3, **keys: Any) -> Run:
    """A run whose problems are ALL and whose `curate` is done where `learned` says with what."""
    prompts = prompting.Prompts(candidates=len(ALL), rounds=2, samples=4)
    defaults = {"max_tokens": 20, "group_size": 8, "oversample": 16, "max_prompt_accuracy": 0.8, "prompts": prompts}
    settings = rlvr.Settings(**{**defaults, **keys})
    training = replace(rlvr.STAGE.training, batch_size=batch_size, tokens_per_batch=60)
    values = {"rlvr": (settings, training), "verify": (verify.Settings(), Conventions())}
    run = Run(Recipe(root / "r.toml", "test", 1, values), root, rlvr.STAGE, str(parent[0]), parent[1], "float32")
    if not (root / "problems").exists():
        store.write(root / "problems", Problem, ALL)
        asked = [Question(f"q{one.id}", one.id, (), one.answer, 0.5, "", "", "", "") for one in ALL]
        store.write(root / "sets" / "rlvr", Question, asked)
    if learned is not None:
        store.write(run.data, Problem, learned)
    return run


def opened(run: Run) -> Policy:
    policy = checkpoints.open_policy(run.parent, precision="float32", critic=rlvr.STAGE.critic(run.settings))
    if policy.critic is not None:
        with torch.no_grad():
            torch.manual_seed(1)
            policy.critic.head.weight.normal_(std=0.1)
    return policy


def filled(
    run: Run, pool: Pool, problems: list[Problem], generation: int = 0, policy: Policy | None = None
) -> tuple[list[Group], dict[str, float]]:
    """The groups that a generation learns from, and its facts."""
    speaker = Speaker(Native(policy or opened(run), run.chat.stops), run.chat, f"rlvr/{generation}")
    sampler = Sampler(run, speaker, pool, Sampling(1.0, 1.0, 20), generation, Watch(run.folder, 0.0))
    by_id = {problem.id: problem for problem in problems}
    sampler.fill(Deck(run, problems), by_id)
    found = grouping.read(run, generation, by_id)
    return found.kept, grouping.facts(found)


def steps(run: Run, policy: Policy | None = None) -> list[Step]:
    return list(rlvr.steps(run, policy or opened(run)))


def documents(batch: Batch) -> list[slice]:
    return [slice(a, b) for a, b in zip(batch.bounds, batch.bounds[1:], strict=False)]


def spoken(batch: GroupBatch) -> list[torch.Tensor]:
    """For each document, the places of its response."""
    return [part.start + batch.rows.weights[part].nonzero()[:, 0] for part in documents(batch.rows)]


def groups(found: list[Step]) -> list[GroupBatch]:
    return [batch for step in found for batch in step.batches if isinstance(batch, GroupBatch)]
