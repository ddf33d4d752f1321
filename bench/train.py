"""Training side by side: our loop and TRL's trainers on the same documents, in turns, each in a process of its own.

    python bench/train.py [supervised unpacked dpo] [--rounds 3] [--steps 4] [--precision float32 bfloat16] [--all]
    python bench/train.py supervised --profile compiled

The model has the shape of Phi-3 and 4.5M parameters (hidden 256, 4 layers, 4/2 heads, MLP 1,024, vocabulary 2,048);
documents are random ids with log-normal lengths, median 160, up to 1,024 tokens. Optimizer steps hold the same
documents for everybody: supervised 8 rows of TRL's best-fit packing, unpacked 32 documents, DPO 16 pairs.

First each of TRL's settings runs once, and the fastest of each kind stays (`--all` keeps them all). Then ours and
theirs take turns. The losses of every step are compared before any time is printed. Time is that of whole optimizer
steps after the first, which warms up and compiles; tokens are real ones, without padding. Memory is the largest
resident set of the process, and beside it what training added to what was resident before the first step. A row is
printed as JSON too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

VOCABULARY, LONGEST, PROMPT = 2_048, 1_024, 32
RATE, BETA = 1e-4, 0.1
SUPERVISED_ROWS, UNPACKED_DOCUMENTS, PAIRS = 8, 32, 16  # of one optimizer step

OURS = ("ours", "ours, compiled")
# TRL's settings by kind of work: what is tried before the fastest of them takes turns with ours.
THEIRS: dict[str, dict[str, dict[str, Any]]] = {
    "supervised": {
        "1 x 8 sdpa": {"batch": 1, "attention": "sdpa"},
        "1 x 8 eager": {"batch": 1, "attention": "eager"},
        "2 x 4 sdpa": {"batch": 2, "attention": "sdpa"},
        "8 x 1 sdpa": {"batch": 8, "attention": "sdpa"},
    },
    "unpacked": {
        "1 x 32 sdpa": {"batch": 1, "attention": "sdpa"},
        "2 x 16 sdpa": {"batch": 2, "attention": "sdpa"},
        "8 x 4 sdpa": {"batch": 8, "attention": "sdpa"},
        "4 x 8 sdpa, padding-free": {"batch": 4, "attention": "sdpa", "padding_free": True},
    },
    "dpo": {
        "1 x 16 sdpa": {"batch": 1, "attention": "sdpa"},
        "2 x 8 sdpa": {"batch": 2, "attention": "sdpa"},
        "4 x 4 sdpa": {"batch": 4, "attention": "sdpa"},
    },
}


def documents(seed: int, count: int) -> list[np.ndarray]:
    """Random ids without the two special ones; lengths log-normal, median 160, cut to 8..1,024."""
    draw = np.random.default_rng(seed)
    lengths = np.clip(np.exp(draw.normal(np.log(160), 0.8, count)).astype(int), 8, LONGEST - PROMPT)
    return [draw.integers(2, VOCABULARY, length) for length in lengths]


def model(attention: str) -> Any:
    """The same random weights in every process."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=1_024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2_048,
        original_max_position_embeddings=2_048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
        resid_pdrop=0.0,
        attn_implementation=attention,
    )
    return transformers.Phi3ForCausalLM(config)


def plan(kind: str, steps: int) -> list[Any]:
    """What every optimizer step learns from: lists of documents, or of (prompt, chosen, rejected)."""
    if kind == "supervised":
        from datasets import Dataset
        from trl.data_utils import pack_dataset

        many = documents(1, SUPERVISED_ROWS * (steps + 1) * 6)
        packed = pack_dataset(Dataset.from_dict({"input_ids": [d.tolist() for d in many]}), LONGEST, "bfd")
        rows = [
            [np.array(part) for part in np.split(np.array(row["input_ids"]), np.cumsum(row["seq_lengths"])[:-1])]
            for row in packed.select(range(SUPERVISED_ROWS * steps))
        ]
        return [rows[at : at + SUPERVISED_ROWS] for at in range(0, len(rows), SUPERVISED_ROWS)]
    if kind == "unpacked":
        many = documents(2, UNPACKED_DOCUMENTS * steps)
        return [many[at : at + UNPACKED_DOCUMENTS] for at in range(0, len(many), UNPACKED_DOCUMENTS)]
    prompts = np.random.default_rng(3).integers(2, VOCABULARY, (PAIRS * steps, PROMPT))
    sides = [documents(seed, PAIRS * steps) for seed in (4, 5)]
    pairs = [(p, np.append(c, 1), np.append(r, 1)) for p, c, r in zip(prompts, *sides, strict=True)]
    return [pairs[at : at + PAIRS] for at in range(0, len(pairs), PAIRS)]


def tokens_of(kind: str, step: list[Any]) -> int:
    """Real tokens that the policy reads in one optimizer step."""
    if kind == "dpo":
        return sum(2 * len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in step)
    if kind == "supervised":
        return sum(len(document) for row in step for document in row)
    return sum(len(document) for document in step)


def ours(
    kind: str, steps: list[Any], precision: str, tokens_per_batch: int, fused: bool, profiled: bool = False
) -> tuple[list[float], list[float]]:
    """(losses, seconds) of each step by the pieces that `algorist run` trains with; `profiled` prints where one more
    step's time goes."""
    import algorist  # noqa: F401  # before torch, whose threads then wait as in a run

    # isort: split
    import torch

    from algorist.model import devices
    from algorist.model.batches import Document, PairBatch, cut_lengths, lay_out, token_mean
    from algorist.model.optimizers import Optimizer
    from algorist.model.policy import Policy, document_sums
    from algorist.stages import dpo, midtrain

    devices.settle()
    policy = Policy(model("eager"), precision=precision)
    policy.train()
    if fused:
        policy.fuse()
    optimizer = Optimizer(policy, kind="adamw", weight_decay=0.0)

    def rows_of(pairs: list[Any]) -> Any:
        both = [(prompt, np.concatenate([prompt, side])) for prompt, *sides in pairs for side in sides]
        return lay_out([Document.of(ids, len(prompt)) for prompt, ids in both])

    def supervised(step: list[Any]) -> Iterator[Any]:
        flat = [document for row in step for document in row] if kind == "supervised" else step
        for batch in token_mean([Document.of(ids, 1) for ids in flat], tokens_per_batch):
            yield midtrain.loss(policy, batch, None)

    def preferences(step: list[Any]) -> Iterator[Any]:
        for part, reference in zip(cut(step), references[id(step)], strict=True):
            weights = torch.full((len(part),), 1 / len(step))
            yield dpo.loss(policy, PairBatch(rows_of(part), *reference, weights), dpo.Settings(beta=BETA))

    def cut(step: list[Any]) -> list[list[Any]]:
        lengths = [2 * len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in step]
        return [[step[i] for i in part] for part in cut_lengths(lengths, tokens_per_batch)]

    references: dict[int, list[tuple[Any, Any]]] = {}
    if kind == "dpo":
        with torch.no_grad():
            for step in steps:
                sums = [document_sums(policy.logprobs(rows), rows) for rows in map(rows_of, cut(step))]
                references[id(step)] = [(both[0::2], both[1::2]) for both in sums]
    make = preferences if kind == "dpo" else supervised

    def taken(step: list[Any]) -> float:
        total = 0.0
        for loss in make(step):
            loss.value.backward()
            total += float(loss.metrics["loss"])
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step(RATE)
        return total

    losses, seconds = [], []
    for step in steps:
        started = time.perf_counter()
        losses.append(taken(step))
        seconds.append(time.perf_counter() - started)
    if profiled:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            taken(steps[-1])
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=48))
    return losses, seconds


def theirs(kind: str, steps: list[Any], precision: str, how: dict[str, Any]) -> tuple[list[float], list[float]]:
    """(losses, seconds) of each step by TRL's trainer."""
    import torch
    import transformers
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    words = {word: i for i, word in enumerate(["[PAD]", "[EOS]", *(f"w{i}" for i in range(2, VOCABULARY))])}
    fast = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="[PAD]", eos_token="[EOS]")
    times: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times[-1] += time.perf_counter()

    size = {"supervised": SUPERVISED_ROWS, "unpacked": UNPACKED_DOCUMENTS, "dpo": PAIRS}[kind]
    shared: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": how["batch"],
        "gradient_accumulation_steps": size // how["batch"],
        "max_steps": len(steps),
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.95,
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "bf16": precision == "bfloat16",
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
    }
    policy = model(how["attention"])
    if kind == "dpo":
        rows = [
            dict(zip(("prompt", "chosen", "rejected"), map(_words, pair), strict=True))
            for step in steps
            for pair in step
        ]
        config = DPOConfig(**shared, beta=BETA, max_length=None, precompute_ref_log_probs=True)
        trainer: Any = DPOTrainer(
            policy, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
    else:
        packed = kind == "supervised"
        flat = [d for step in steps for row in step for d in (row if packed else [row])]
        data = Dataset.from_dict({"input_ids": [ids.tolist() for ids in flat]})
        if packed:  # rows as the plan has them: TRL's own packing made it
            rows_ids = [np.concatenate(row).tolist() for step in steps for row in step]
            lengths = [[len(d) for d in row] for step in steps for row in step]
            data = Dataset.from_dict({"input_ids": rows_ids, "labels": rows_ids, "seq_lengths": lengths})
            shared["dataset_kwargs"] = {"skip_prepare_dataset": True}
        config = SFTConfig(
            **shared,
            packing=packed,
            max_length=LONGEST if packed or not how.get("padding_free") else None,
            padding_free=how.get("padding_free", False),
        )
        trainer = SFTTrainer(policy, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.add_callback(Clock())
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], times


def _words(ids: Any) -> str:
    """Ids as words; the end of turn is left to TRL, which adds it."""
    return "".join(f"w{i} " for i in ids if i != 1)


def child(kind: str, name: str, precision: str, steps: int, tokens_per_batch: int) -> None:
    """One contender: prints its figures as JSON."""
    warnings.filterwarnings("ignore")
    work = plan(kind, steps)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = (
        ours(kind, work, precision, tokens_per_batch, "compiled" in name)
        if name in OURS
        else theirs(kind, work, precision, THEIRS[kind][name])
    )
    losses, seconds = run
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokens = [tokens_of(kind, step) for step in work]
    speed = statistics.median(t / s for t, s in zip(tokens[1:], seconds[1:], strict=True))
    print(
        json.dumps({"losses": losses, "speed": speed, "peak_gib": peak / 2**20, "grown_gib": (peak - before) / 2**20})
    )


def call(kind: str, name: str, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one contender in a process of its own."""
    command = [sys.executable, __file__, kind, "--child", name, "--precision", precision, "--steps", str(options.steps)]
    command += ["--tokens-per-batch", str(options.tokens_per_batch)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    )
    if done.returncode:
        last = (done.stderr.strip() or "no word").splitlines()[-1]
        return {"failed": last}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compare(kind: str, options: argparse.Namespace) -> None:
    """Ours and theirs in turns, for one kind of work."""
    contenders = [(name, precision) for name in OURS for precision in options.precision]
    names = [name for name in THEIRS[kind] if options.only in name]
    tried = {(name, p): call(kind, name, p, options) for name in names for p in options.precision}
    for (name, precision), found in tried.items():
        said = found.get("failed") or f"{found['speed']:,.0f} tokens/s, {found['peak_gib']:.2f} GiB"
        print(f"  TRL {name} {precision}: {said}", flush=True)
    sound = {key: found for key, found in tried.items() if "failed" not in found}
    best = max(sound, key=lambda key: sound[key]["speed"])
    contenders += list(sound) if options.all else [best]
    rounds: dict[tuple[str, str], list[dict[str, Any]]] = {key: [] for key in contenders}
    for _ in range(options.rounds):
        for key in contenders:
            rounds[key].append(call(kind, *key, options))
    reference = sound[best]["losses"]
    print(f"{kind}: {options.steps} steps, the first not timed, medians of {options.rounds} rounds in turns")
    top = statistics.median(found["speed"] for found in rounds[best])
    for (name, precision), found in rounds.items():
        gap = max(abs(a - b) / abs(b) for a, b in zip(found[0]["losses"], reference, strict=True))
        speed = statistics.median(one["speed"] for one in found)
        row = {
            "bench": f"train.{kind}",
            "who": name if name in OURS else f"TRL {name}",
            "precision": precision,
            "tokens_per_s": round(speed),
            "ratio": round(speed / top, 2),
            "peak_gib": round(max(one["peak_gib"] for one in found), 2),
            "grown_gib": round(max(one["grown_gib"] for one in found), 2),
            "loss_gap": float(f"{gap:.2g}"),
        }
        memory = f"{row['peak_gib']:.2f} GiB (+{row['grown_gib']:.2f})"
        said = f"{row['who']:28} {precision:9} {speed:9,.0f} tokens/s  x{row['ratio']:.2f}  {memory}"
        print(f"  {said}  losses within {gap:.1e}")
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=list(THEIRS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--precision", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--tokens-per-batch", type=int, default=1_024)
    parser.add_argument("--only", default="", help="try only settings of TRL with this in their name")
    parser.add_argument("--all", action="store_true", help="keep every setting of TRL in the turns")
    parser.add_argument("--profile", choices=["plain", "compiled"], help="only print where our time goes")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for kind in options.kinds:
        if options.profile:
            fused = options.profile == "compiled"
            ours(kind, plan(kind, options.steps), options.precision[0], options.tokens_per_batch, fused, profiled=True)
        elif options.child:
            child(kind, options.child, options.precision[0], options.steps, options.tokens_per_batch)
        else:
            compare(kind, options)


if __name__ == "__main__":
    main()
