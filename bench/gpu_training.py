"""The training rows of bench/gpu.py, by the pieces that `algorist run` trains with.

Weights are random and the same for every contender, held in float32, with bfloat16 products on a GPU; the optimizer is
fused AdamW. No contender of these rows skips small probabilities, so flat distributions cost what peaked ones do.
"""

from __future__ import annotations

from typing import Any

import gpu_work as work
import numpy as np
import torch
import transformers
from gpu_kernels import now
from gpu_work import Say, Size, Step

from algorist.model import attention, devices, memory, probe, recompute
from algorist.model.batches import Batch, Document, PairBatch, cut_lengths, token_mean
from algorist.model.optimizers import Optimizer
from algorist.model.policy import Policy
from algorist.stages import dpo, midtrain, reference

RATE, BETA = 1e-6, 0.1
COMPARED = 2_048  # tokens of the document whose log-probabilities are compared with plain float32


def precision(device: torch.device) -> str:
    """Of the matrix products."""
    return "bfloat16" if device.type == "cuda" else "float32"


def build(size: Size, device: torch.device, attend: str) -> Any:
    """Phi-4-mini, or a small one of its kind, under an attention of transformers.

    Its rotary embedding has no long factors, which are other numbers and no other work.
    """
    config = transformers.Phi3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=131_072,
        original_max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
        attn_implementation=attend,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return transformers.Phi3ForCausalLM(config)


def ours(row: str, size: Size, device: torch.device, until: float, say: Say) -> None:
    """Every optimizer step of a row; before them, where there are pairs, the reference pass over all."""
    devices.settle()
    policy = policy_of(size, device, size.row)
    steps, stage = work.steps(row, size), dpo if row == "dpo16k" else midtrain
    references = [_reference(policy, step, turn, size, say) for turn, step in enumerate(steps) if step.pairs]
    facts: dict[str, Any] = {"logprob_gap": _gap(policy, steps[0].documents[0][:COMPARED])} if references else {}
    optimizer = Optimizer(policy, kind="adamw", weight_decay=0.0)
    tokens = size.longest if row == "sft20k" else size.row
    kind = fit(policy, optimizer, max(tokens, *(sum(map(len, r)) for step in steps for r in step.rows)))
    facts |= {"path": policy.path, "recompute": kind}
    seconds = 0.0
    for turn, step in enumerate(steps):
        if work.left(until) < seconds:
            return
        begin, total = now(device), torch.zeros((), device=device)
        for batch in _batches(step, tokens, references[turn] if references else None):
            loss = stage.loss(policy, batch.to(device), dpo.Settings(beta=BETA))
            loss.value.backward()
            total += loss.metrics["loss"]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step(RATE)
        seconds = now(device) - begin
        checks = {"loss": float(total)} | ({"reference": float(references[turn].mean())} if references else {})
        told = work.line(step, turn, seconds, size) | {"who": "ours"} | checks | facts
        say(told | memory_used(device))


def memory_used(device: torch.device) -> dict[str, Any]:
    """The most that was allocated on a GPU."""
    return {"device": "cuda", "peak_gib": round(devices.peak_memory() / 2**30, 1)} if device.type == "cuda" else {}


def policy_of(size: Size, device: torch.device, tokens: int) -> Policy:
    """Under the attention that a run would choose for rows of `tokens`, which is told."""
    model = build(size, device, "eager")
    shape, dtype = probe.Shape.of(model.config, tokens), getattr(torch, precision(device))
    chosen = probe.choose(shape, device, dtype, say=lambda line: print(line, flush=True))
    policy = Policy(model, precision=precision(device), path=chosen.name)
    policy.train()
    return policy


def fit(policy: Policy, optimizer: Optimizer, tokens: int) -> str:
    """Chooses what is computed again as algorist/train.py does."""
    kind = memory.choose(memory.Need.of(policy, optimizer, tokens), memory.available(policy.device), "auto")
    recompute.apply(policy.model, kind)
    return kind


def _batches(step: Step, tokens: int, references: Any) -> list[Batch] | list[PairBatch]:
    """The micro-batches of a step."""
    if references is None:
        return token_mean([Document.of(ids, 1) for ids in step.documents], tokens)
    found = []
    for part in cut_lengths([sum(map(len, pair.documents)) for pair in step.pairs], tokens):
        pairs = [step.pairs[place] for place in part]
        found.append(dpo.lay_out_pairs(_documents(pairs), references[part], total=len(step.pairs)))
    return found


def _documents(pairs: Any) -> list[Document]:
    return [Document.of(ids, len(pair.prompt)) for pair in pairs for ids in pair.documents]


def _reference(policy: Policy, step: Step, turn: int, size: Size, say: Say) -> Any:
    """(P, 2) float32 log-probabilities of the pairs; what they took is told."""
    begin = now(policy.device)
    found = reference.logprobs(policy, _documents(step.pairs), size.row, lambda _: None)
    told = work.line(step, turn, now(policy.device) - begin, size, work.FORWARD)
    say({**told, "set": "reference pass", "who": "ours"})
    return found.reshape(-1, 2).astype(np.float32)


@torch.no_grad()
def _gap(policy: Policy, ids: Any) -> float:
    """Nats a token by which our log-probabilities of a document differ from plain float32 ones, on average."""
    batch = token_mean([Document.of(ids, 1)], len(ids))[0].to(policy.device)
    found = policy.logprobs(batch)[1:]
    policy.model.set_attn_implementation("eager")
    logits = policy.model(batch.tokens[None]).logits[0, :-1].float()
    policy.model.set_attn_implementation(attention.NAME)
    plain = logits.log_softmax(1).gather(1, batch.tokens[1:, None])[:, 0]
    return float((found - plain).abs().mean())
