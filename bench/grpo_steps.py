"""GRPO steps of ours and of TRL on the same prompts, groups and lengths; bench/grpo.py and bench/gpu_rollouts.py run them.

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
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

GROUP, RATE, CLIP = 8, 1e-6, 1.0
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


def ours(work: Work, policy: Any, tell: Tell, *, updates: int = 1) -> None:
    """Each turn by the pieces of `algorist run`: the sampler, the store, selection and layout, loss and optimizer.

    Rollouts and verdicts are written to disk and read again, and sampler and trainer compared, as in a run.

    Args:
        updates  optimizer steps on the responses of a turn; with more than one, old log-probabilities are computed
    """
    import torch

    from algorist.generate import rollouts
    from algorist.generate.sampling import Sampling
    from algorist.model.optimizers import Optimizer
    from algorist.records import Problem, Verdict
    from algorist.stages import groups, learning, rlvr

    clock = Clock(wait=_wait(policy.device))
    optimizer = Optimizer(policy, kind="adamw", weight_decay=0.0)
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
                    run, policy, None, found.kept, index, facts | {"temperature": work.temperature}
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
                    if turn.given:
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
    """|ours - theirs| / |theirs|. TRL divides by the sample deviation of a group and ours by that of its population:
    its advantages, and so its gradients, are sqrt(7/8) of ours, but for the 1e-4 that it adds to the deviation."""
    assert ours.keys() == theirs.keys()
    scale = np.sqrt((GROUP - 1) / GROUP)
    gaps = sum(float(np.square(scale * ours[name] - theirs[name], dtype=np.float64).sum()) for name in ours)
    return float(np.sqrt(gaps / sum(float(np.square(one, dtype=np.float64).sum()) for one in theirs.values())))


def _wait(device: Any) -> Callable[[], object]:
    import torch

    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def theirs(work: Work, model: Any, how: dict[str, Any], tell: Tell, *, bf16: bool) -> None:
    """Each turn by TRL's GRPOTrainer on a model of transformers.

    Args:
        how   "batch": completions of one forward and backward; "generate": "dynamic", "static" or "cb", transformers'
              continuous batching, with its keys in "batching"; "more": other keys of GRPOConfig
        bf16  products in bfloat16
    """
    import torch
    import transformers
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    warnings.filterwarnings("ignore")
    cb, device = how["generate"] == "cb", next(model.parameters()).device
    count = len(work.turns[0].lengths)
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=how["batch"],
        gradient_accumulation_steps=count // how["batch"],
        num_generations=GROUP,
        max_completion_length=work.longest,
        max_steps=len(work.turns),
        temperature=work.temperature,
        top_p=work.top_p,
        beta=0.0,
        loss_type={"response": "grpo", "token": "dapo"}[work.average],
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta2=0.95,
        max_grad_norm=CLIP,
        bf16=bf16,
        gradient_checkpointing=how.get("again", False),
        shuffle_dataset=False,
        cache_implementation="static" if how["generate"] == "static" else None,
        use_transformers_continuous_batching=cb,
        transformers_continuous_batching_config=how.get("batching") if cb else None,
        generation_kwargs={"eos_token_id": -1} if cb else None,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=False,
        **how.get("more", {}),
    )
    rows = [{"prompt": text(prompt)} for turn in work.turns for prompt in turn.prompts]
    state = _State(work, tell, Clock(wait=_wait(device)))
    trainer: Any = GRPOTrainer(
        model,
        lambda completion_ids, **_: [1.0 if right(ids) else -1.0 for ids in completion_ids],
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(work.vocabulary),
        rollout_func=state.given if work.turns[0].given else None,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(_steps(transformers.TrainerCallback, trainer, state))
    for name, phase in (
        ("_generate_single_turn", "generate"),
        ("_calculate_rewards", "verify"),
        ("_generate_and_score_completions", "prepare"),
    ):
        setattr(trainer, name, state.timed(getattr(trainer, name), phase))
    with _imposed(torch, transformers, model, state):
        trainer.train()


@dataclass
class _State:
    """What the trainer's hooks know."""

    work: Work
    tell: Tell
    clock: Clock
    index: int = 0  # of the turn
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def turn(self) -> Turn:
        """The one that is going on."""
        return self.work.turns[self.index]

    def timed(self, call: Any, phase: str) -> Any:
        """The same call, counted as a phase."""

        def run(*args: Any, **keys: Any) -> Any:
            with self.clock.phase(phase):
                return call(*args, **keys)

        return run

    def given(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """TRL's `rollout_func`: the responses of this turn."""
        ids = trainer.processing_class(prompts)["input_ids"]
        return {"prompt_ids": ids, "completion_ids": [list(one) for one in self.turn.given], "logprobs": None}


def _steps(base: type, trainer: Any, state: _State) -> Any:
    """A callback that tells of each optimizer step; the first, of given responses, once."""

    class Steps(base):  # type: ignore[misc]
        whole: Any = None

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.whole = state.clock.phase("train")
            self.whole.__enter__()

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            if state.turn.given:
                state.facts["gradient"] = gradient(trainer.model, 0.0)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.whole.__exit__(None, None, None)

        def on_log(self, args: Any, at: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in logs:
                return
            norm = float(logs["grad_norm"])
            facts = state.facts | {"loss": logs["loss"], "norm": norm}
            if "gradient" in facts:
                facts["gradient"] = {name: one * max(1.0, norm / CLIP) for name, one in facts["gradient"].items()}
            going = state.tell(state.index, state.clock.taken(), facts)
            state.facts = {}
            state.index += 1
            trainer.rollout_func = None  # from now on it generates
            control.should_training_stop |= not going

    return Steps()


@contextmanager
def _imposed(torch: Any, transformers: Any, model: Any, state: _State) -> Iterator[None]:
    """Lengths for `generate` and for continuous batching."""

    class Ends(transformers.LogitsProcessor):  # type: ignore[misc]
        """The end token at the length of each response, and nowhere else."""

        def __init__(self, lengths: Sequence[int]) -> None:
            self.lengths, self.ends, self.said = torch.tensor(lengths), set(lengths), 0

        def __call__(self, ids: Any, scores: Any) -> Any:
            self.said += 1
            scores[:, 1] = -torch.inf
            if self.said in self.ends:
                over = (self.lengths == self.said).to(scores.device)
                scores = scores.masked_fill(over[:, None], -torch.inf)
                scores[over, 1] = 0.0
            return scores

    plain = model.generate

    def generate(*args: Any, **keys: Any) -> Any:
        return plain(*args, logits_processor=transformers.LogitsProcessorList([Ends(state.turn.lengths)]), **keys)

    def add_requests(manager: Any, inputs: Any, max_new_tokens: Any = None, **_: Any) -> list[str]:
        pairs = zip(inputs, state.turn.lengths, strict=True)
        return [manager.add_request(list(ids), max_new_tokens=n, eos_token_id=-1) for ids, n in pairs]

    manager = transformers.ContinuousBatchingManager
    before = manager.add_requests
    model.generate, manager.add_requests = generate, add_requests
    try:
        yield
    finally:
        manager.add_requests = before
        del model.generate
