"""GRPO steps on prompts, groups and lengths from a list, by ours; bench/grpo_trl.py has TRL's on the same.

Random weights never stop, so each response has a length from a list. Ours is told it with the request (max_tokens), and
so is transformers' continuous batching. `generate` has no such key: a logits processor forbids the end token before a
response's length and forces it there, the trainer stops at the longest of the batch, as it does with a trained model,
and cuts what comes after the ends. A response is right where its ids add up to an even number.

The first turn is of given responses and not timed: nobody generates, and the gradients must agree. TRL takes them
by its own `rollout_func`. All later turns generate by themselves.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

GROUP, RATE, CLIP = 8, 1e-6, 1.0
# TRL divides by the sample deviation of a group and ours by that of its population: its advantages are so many of ours,
# but for the 1e-4 that it adds to the deviation.
SAMPLE = ((GROUP - 1) / GROUP) ** 0.5
PHASES = ("generate", "verify", "prepare", "train")
Ids = tuple[int, ...]
Gradient = dict[str, Any]  # name → (…) float32
Tell = Callable[[int, dict[str, float], dict[str, Any]], bool]  # turn, seconds by phase, facts → whether to go on


@dataclass(frozen=True)
class Turn:
    """The prompts of one GRPO step, and how long the responses to them are."""

    prompts: tuple[Ids, ...]
    lengths: tuple[int, ...]  # of GROUP responses to each prompt, one after another
    given: tuple[Ids, ...] = ()  # the responses themselves: nobody generates

    @property
    def tokens(self) -> int:
        """Of all responses."""
        return sum(self.lengths)


@dataclass(frozen=True)
class Work:
    """What a run of GRPO steps is."""

    turns: tuple[Turn, ...]
    vocabulary: int
    longest: int  # tokens of a response at most
    temperature: float = 1.0
    top_p: float = 1.0
    average: str = "response"  # or "token": what TRL calls grpo and dapo
    tokens_per_batch: int = 1_024  # of ours
    gradients: bool = False  # told of the turn whose responses are given


@dataclass
class Clock:
    """Seconds by phase; a phase inside of another counts for itself alone."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    wait: Callable[[], object] = lambda: None  # for the device
    _open: list[float] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is done inside belongs to `name`."""
        self.wait()
        began = time.perf_counter()
        self._open.append(0.0)
        try:
            yield
        finally:
            self.wait()
            took = time.perf_counter() - began
            self.seconds[name] += took - self._open.pop()
            if self._open:
                self._open[-1] += took

    def taken(self) -> dict[str, float]:
        """What was counted, and begin again."""
        found = {name: self.seconds[name] for name in PHASES}
        self.seconds.clear()
        return found


def right(response: Sequence[int]) -> bool:
    """The rule."""
    return sum(response) % 2 == 0


def tokenizer(vocabulary: int) -> Any:
    """Words that are the names of ids, and a chat template that adds nothing."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["[PAD]", "[EOS]", *(f"w{i}" for i in range(2, vocabulary))])}
    fast = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    made = {"tokenizer_object": fast, "pad_token": "[PAD]", "eos_token": "[EOS]", "chat_template": template}
    return transformers.PreTrainedTokenizerFast(**made)


def text(ids: Sequence[int]) -> str:
    """What the tokenizer reads as these ids."""
    return " ".join(f"w{i}" for i in ids)


@dataclass(frozen=True)
class Imposed:
    """Ours: an engine whose responses have the lengths of a turn, or are given."""

    engine: Any  # of generate/rollouts.py
    turn: Turn

    def stream(self, requests: Sequence[Any], sampling: Any, *, enough: Callable[[], bool]) -> Iterator[Any]:
        """As the engine's; the log-probabilities of given responses are the policy's."""
        if not self.turn.given:
            told = [replace(request, max_tokens=n) for request, n in zip(requests, self.turn.lengths, strict=True)]
            yield from self.engine.stream(told, sampling, enough=enough)
            return
        import torch

        from algorist.generate.sampling import Response
        from algorist.model.batches import Document, lay_out

        policy = self.engine.policy
        for place, (request, said) in enumerate(zip(requests, self.turn.given, strict=True)):
            rows = lay_out([Document.of(request.prompt + said, len(request.prompt))]).to(policy.device)
            with torch.no_grad():
                found = policy.logprobs(rows, temperature=sampling.temperature)[len(request.prompt) :]
            yield place, Response(said, tuple(found.tolist()), "length")

    def hand_over(self, policy: Any) -> None:
        """As the engine's."""
        self.engine.hand_over(policy)

    def rest(self) -> None:
        """As the engine's."""
        self.engine.rest()


def ours(work: Work, policy: Any, optimizer: Any, tell: Tell, *, updates: int = 1) -> None:
    """Each turn by the pieces of `algorist run`: the sampler, the store, selection and layout, loss and optimizer.

    Rollouts and verdicts are written to disk and read again, and sampler and trainer compared, as in a run.

    Args:
        updates  optimizer steps on the responses of a turn; with more than one, old log-probabilities are computed
    """
    import torch

    from algorist.generate import rollouts
    from algorist.generate.sampling import Sampling
    from algorist.records import Problem, Verdict
    from algorist.stages import groups, learning, rlvr

    clock = Clock(wait=waiting(policy.device))
    sampling = Sampling(work.temperature, work.top_p, work.longest)
    with tempfile.TemporaryDirectory() as folder:
        run = _run(Path(folder), work, updates)
        for index, turn in enumerate(work.turns):
            with clock.phase("generate"):
                # The prompt stands in the id: two problems of the same words would be one.
                asked = [Problem(f"{index}.{i}", text(prompt), "") for i, prompt in enumerate(turn.prompts)]
                engine = Imposed(rollouts.Native(policy, run.chat.stops, len(turn.lengths)), turn)
                engine.hand_over(policy)
                speaker = rollouts.Speaker(engine, run.chat, f"rlvr/{index}", index * updates)
                wanted = [(problem, i) for problem in asked for i in range(GROUP)]
                said = rollouts.rollouts(speaker, wanted, sampling, address=(run.seed, "rlvr", index))
                engine.rest()
            assert [one.num_tokens for one in said] == list(turn.lengths)
            with clock.phase("verify"):
                verdicts = [Verdict(one.id, right(one.tokens or ()), "rule", "", "bench") for one in said]
            with clock.phase("prepare"):
                groups.write(run, index, list(zip(said, verdicts, strict=True)), [])
                found = groups.read(run, index, {problem.id: problem for problem in asked})
                facts = groups.facts(found)
                steps = learning.optimizer_steps(
                    run, policy, None, found, index, facts | {"temperature": work.temperature}
                )
            told: dict[str, Any] = defaultdict(float)
            for _ in range(updates):
                with clock.phase("prepare"):
                    step = next(steps)
                with clock.phase("train"):
                    for batch in step.batches:
                        loss = rlvr.loss(policy, batch.to(policy.device), run.settings)
                        loss.value.backward()
                        told["loss"] += float(loss.value.detach())
                    told["norm"] = float(torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP))
                    if turn.given and work.gradients:
                        told["gradient"] = gradient(policy.model, told["norm"])
                    optimizer.step(RATE)
                told |= {name: value for name, value in step.facts.items() if name == "logprob_gap"}
            if not tell(index, clock.taken(), dict(told)):
                return


def _run(folder: Path, work: Work, updates: int) -> Any:
    """A run whose settings are those of plain GRPO: all responses are learned from."""
    from algorist.model.chat import Chat
    from algorist.recipe import Recipe
    from algorist.stage import Run
    from algorist.stages import learning, rlvr

    plain = {key: value for key, value in rlvr.Settings.presets["plain"].items() if not isinstance(value, dict)}
    settings = rlvr.Settings(
        **plain,
        preset="plain",
        steps=len(work.turns),
        updates=updates,
        group_size=GROUP,
        max_tokens=work.longest,
        objective=learning.Objective(keep_flat=True, average=work.average),  # type: ignore[arg-type]
        temperature=rlvr.Annealing(work.temperature, work.temperature),
    )
    training = replace(rlvr.STAGE.training, learning_rate=RATE, tokens_per_batch=work.tokens_per_batch)
    recipe = Recipe(folder / "grpo.toml", "grpo", 0, {"rlvr": (settings, training)})
    chat = Chat(tokenizer(work.vocabulary), "{problem}", 1, frozenset())
    return Run(recipe, folder, rlvr.STAGE, "", chat, "float32")


def gradient(model: Any, norm: float) -> Gradient:
    """Gradients by name as they were before they were clipped to `CLIP`, divided by what a length of 1 is."""
    scale = max(1.0, norm / CLIP)
    return {name: one.grad.float().cpu().numpy() * scale for name, one in model.named_parameters()}


def apart(ours: Gradient, theirs: Gradient) -> float:
    """|ours - theirs| / |theirs|, ours in the units of TRL's advantages."""
    assert ours.keys() == theirs.keys()
    gaps = sum(float(np.square(SAMPLE * ours[name] - theirs[name], dtype=np.float64).sum()) for name in ours)
    return float(np.sqrt(gaps / sum(float(np.square(one, dtype=np.float64).sum()) for one in theirs.values())))


def waiting(device: Any) -> Callable[[], object]:
    """What waits for a device."""
    import torch

    return torch.cuda.synchronize if device.type == "cuda" else lambda: None
