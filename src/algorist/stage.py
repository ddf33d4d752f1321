"""What a stage is. Stages and the loop never see each other; they meet here.

A stage is a record of settings and four functions, read in the order in which they are called: `curate` chooses the
records it learns from, `plan` says how many steps that makes, `steps` yields the micro-batches of one optimizer
step after another, `loss` turns one into a weighted sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from algorist import store
from algorist.model import checkpoints
from algorist.model.batches import Batch, GroupBatch, PairBatch
from algorist.model.chat import Chat
from algorist.model.policy import CriticKind, Policy
from algorist.numerics.losses import Loss
from algorist.recipe import Recipe

AnyBatch = Batch | PairBatch | GroupBatch


@dataclass(frozen=True)
class Lora:
    """Adapters that are trained in the place of the weights, and merged into them in every checkpoint."""

    rank: int = 0  # of the adapters of the layers' matrices; 0 trains the weights themselves
    alpha: float = 32.0  # an adapter's part is scaled by alpha / rank
    targets: tuple[str, ...] = ()  # matrices of a layer by name, such as "o_proj"; none named: all of them

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError("rank must be at least 0 and alpha above 0.")


@dataclass(frozen=True)
class Training:
    """The loop's keys: every stage's section takes them, each stage with defaults of its own."""

    learning_rate: float = 1e-5  # peak
    warmup: float = 0.1  # share of the steps over which the rate rises
    end_learning_rate: float = 0.0  # share of the peak that the cosine falls to; 1 keeps it constant
    optimizer: Literal["adamw", "muon", "adamw8bit"] = "adamw"  # Muon: for the matrices of the layers, AdamW the rest
    others_rate: float = 1.0  # with Muon: the rate of embeddings and vectors, as a multiple of learning_rate
    weight_decay: float = 0.0  # decoupled, per step and unit of learning rate
    max_grad_norm: float = 1.0  # longer gradients are scaled to this norm
    batch_size: int = 128  # rows or pairs of an optimizer step; in [rlvr] prompts of a generation
    tokens_per_batch: int = 16_384  # of one micro-batch: what memory allows; changes nothing but rounding
    recompute: Literal["auto", "none", "selective", "full"] = "auto"  # in the backward pass, to keep less in memory
    compile: bool = False  # layers, and on a CPU sampling, by torch.compile; the first step waits; needs a C++ compiler
    save_every: int = 200  # optimizer steps between two saves that a killed run can go on from
    lora: Lora = Lora()

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.tokens_per_batch < 1 or self.save_every < 1:
            raise ValueError("batch_size, tokens_per_batch and save_every must be at least 1.")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup = {self.warmup} is a share of the steps, 0 to 1 was expected.")
        if min(self.learning_rate, self.max_grad_norm, self.others_rate) <= 0:
            raise ValueError("learning_rate, max_grad_norm and others_rate must be above 0: nothing would be learned.")
        if math.isinf(self.learning_rate):
            raise ValueError("learning_rate = inf is no step that a weight could take.")
        if not 0 <= self.end_learning_rate <= 1:
            raise ValueError(
                f"end_learning_rate = {self.end_learning_rate} is a share of the peak, 0 to 1 was expected."
            )
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay = {self.weight_decay} is negative, 0 or more was expected.")


@dataclass(frozen=True)
class Plan:
    """How much work a stage is; known before any of it is done."""

    num_steps: int
    documents: int  # that the stage learns from
    tokens: int  # of these documents together, 0 where they are sampled on the way
    longest: int = 0  # tokens of the longest document or pair, which is never cut; 0 where it is not known


@dataclass(frozen=True)
class Step:
    """One optimizer step: micro-batches, and what the journal should know of where they came from."""

    batches: tuple[AnyBatch, ...]
    facts: Mapping[str, float] = field(default_factory=dict)
    may_stop: bool = True  # False between two optimizer steps on one generation: a save there could not be resumed


@dataclass(frozen=True)
class Run:
    """What a stage's functions are given: the recipe, where things lie, and where to begin."""

    recipe: Recipe
    root: Path  # the run folder
    stage: Stage
    parent: str  # folder or hub name of the model this stage starts from
    chat: Chat
    precision: str  # of matrix products
    weights: str = "float32"  # the type that weights are held in
    attention: str = "auto"  # the path asked for (model/probe.py)
    start: int = 0  # first step to take; not 0 when a killed run goes on

    def opened(self, source: str | Path | None = None, *, critic: CriticKind = "none") -> Policy:
        """The policy of a folder, or of the parent, as training has it."""
        return checkpoints.open_policy(
            source or self.parent,
            precision=self.precision,
            weights=self.weights,
            attention=self.attention,
            tokens=self.training.tokens_per_batch,
            critic=critic,
        )

    @property
    def folder(self) -> Path:
        """This stage's own folder."""
        return self.root / self.stage.name

    @property
    def data(self) -> Path:
        """The data set that `curate` made."""
        return self.folder / "data"

    @property
    def settings(self) -> Any:
        """The stage's own keys."""
        return self.recipe.of(self.stage.name, self.stage.settings)

    @property
    def training(self) -> Training:
        """The loop's keys."""
        return self.recipe.of(self.stage.name, Training)

    @property
    def set(self) -> Path:
        """The curated set that this stage learns from; its shard k was drawn from shard k of rollouts and measures."""
        return self.root / "sets" / self.stage.name

    @property
    def seed(self) -> int:
        """The recipe's."""
        return self.recipe.seed


@dataclass(frozen=True)
class Stage:
    """One stage of the recipe."""

    name: str  # section of the recipe, folder of the run
    settings: type  # this stage's own keys
    training: Training  # the loop's keys with this stage's defaults
    reads: tuple[str, ...]  # other sections of the recipe that `curate` and `steps` look at
    curate: Callable[[Run], store.Manifest]
    plan: Callable[[Run], Plan]
    steps: Callable[[Run, Policy], Iterator[Step]]
    loss: Callable[[Policy, Any, Any], Loss]
    critic: Callable[[Any], CriticKind] = lambda settings: "none"
    copies: Callable[[Any], int] = lambda settings: 0  # models that `steps` holds on the policy's device beside it
    # Settings, and what the journal holds of the last steps: what is going wrong and what to do, "" where nothing is.
    alarm: Callable[[Any, Sequence[Mapping[str, Any]]], str] = lambda settings, entries: ""
    looked_at: Callable[[Any], int] = lambda settings: 10  # optimizer steps that the alarm is shown
