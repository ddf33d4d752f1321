"""The rows of bench/gpu.py that sample, by transformers and TRL, on the work of bench/gpu_rollouts.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gpu_work as work
import grpo_trl
import numpy as np
import torch
from gpu_kernels import now
from gpu_rollouts import SHORT, TEMPERATURE, TOP_P, WARM, jobs, learning, of, rollout, sharpened, step, teller
from gpu_training import build, precision
from gpu_work import Say, Size
from torch import Tensor

# Peers in the order in which they run; a process that time runs out for is ended, so those that may hang come last.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "decode_step": {"generate, static": {}, "continuous batching": {}},
    "rollout": {"generate x 64, static": {"batch": 64}, "continuous batching": {}},
    "grpo_step": {
        "TRL, continuous batching": {"generate": "cb", "batch": 8},
        "TRL, static": {"generate": "static", "batch": 8},
    },
}


def theirs(row: str, who: str, size: Size, device: torch.device, until: float, say: Say) -> None:
    """One row by a peer."""
    how = SETTINGS[row][who]
    if row == "grpo_step":
        _learn_theirs(who, how, size, device, until, say)
        return
    model = sharpened(build(size, device, "sdpa"), size).to(getattr(torch, precision(device))).eval()
    if row == "decode_step":
        _steps_theirs(who, model, size, device, until, say)
    else:
        _rollouts_theirs(who, how, model, size, device, say)


def _steps_theirs(who: str, model: Any, size: Size, device: torch.device, until: float, say: Say) -> None:
    """A static cache, compiled where transformers does so by itself (on a GPU), or continuous batching."""
    for batch, context in of(size).steps:
        if work.left(until) < 60 * (device.type == "cuda"):
            return
        prompts = np.random.default_rng(4).integers(2, size.vocabulary, (batch, context)).tolist()
        count = WARM + of(size).decoded
        if who == "continuous batching":
            # Prompts are read in parts while the first already speak; steady are the steps when all do.
            found = _batched(model, [(prompt, 4 * count) for prompt in prompts], device)
            times = [one.timestamps for one in found]
            begin, end = max(t[0] for t in times), min(t[-1] for t in times)
            steady = [t for t in times[-1] if begin < t <= end]
        else:
            steady = _generate(model, prompts, [count] * batch, count, device)
        seconds = np.diff(steady)[WARM:].tolist()
        if not seconds:
            say({"set": f"{batch} x {context:,}", "who": who, "failed": "no steps in which all sequences were decoded"})
            continue
        say(step(size, device, batch, context, seconds) | {"who": who})
        torch._dynamo.reset()  # sizes are static: another batch is another graph


def _generate(
    model: Any, prompts: Sequence[Sequence[int]], lengths: Sequence[int], room: int, device: torch.device
) -> list[float]:
    """transformers' generate until the longest is done; the moments before each token was drawn.

    The cache has `room` for as many: one of another size would be compiled anew.
    """
    ending, moments = grpo_trl.ending(lengths), []

    def processor(ids: Tensor, scores: Tensor) -> Any:
        moments.append(now(device))
        return ending(ids, scores)

    ids = torch.tensor(prompts, device=device)
    how = {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0, "pad_token_id": 0}
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=room,
            eos_token_id=1,
            cache_implementation="static",
            logits_processor=[processor],
            **how,
        )
    return moments


def _batched(model: Any, asked: Sequence[tuple[list[int], int]], device: torch.device) -> list[Any]:
    """The answers of transformers' continuous batching, in order; its graphs are on where it has them."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    keys: dict[str, Any] = {"use_cuda_graph": True}
    if device.type == "cpu":  # it would take half of the memory
        keys = {"num_blocks": 2 * len(asked) + 4, "max_batch_tokens": 256}
    longest = max(count for _, count in asked)
    how = {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0, "pad_token_id": 0}
    plain = GenerationConfig(eos_token_id=-1, max_new_tokens=longest, **how)
    manager = model.init_continuous_batching(
        generation_config=plain, continuous_batching_config=ContinuousBatchingConfig(**keys)
    )
    manager.start()
    try:
        for i, (prompt, count) in enumerate(asked):
            manager.add_request(prompt, f"r{i}", max_new_tokens=count, record_timestamps=True)
        found: dict[str, Any] = {}
        while len(found) < len(asked):
            result = manager.get_result(timeout=1)
            if result is None and not manager.is_running():
                raise RuntimeError("the manager has stopped")
            if result is not None and result.is_finished():
                found[result.request_id] = result
    finally:
        manager.stop(block=True)
    return [found[f"r{i}"] for i in range(len(asked))]


def _rollouts_theirs(who: str, how: dict[str, Any], model: Any, size: Size, device: torch.device, say: Say) -> None:
    for short in (SHORT, 1):
        asked = jobs(size, short)
        began = now(device)
        if who == "continuous batching":
            _batched(model, asked, device)
        else:
            for first in range(0, len(asked), how["batch"]):
                prompts, lengths = zip(*asked[first : first + how["batch"]], strict=True)
                _generate(model, prompts, lengths, of(size).longest, device)
        say(rollout(size, device, asked, now(device) - began, short) | {"who": who})


def _learn_theirs(who: str, how: dict[str, Any], size: Size, device: torch.device, until: float, say: Say) -> None:
    asked = learning(size, timed=1)
    model = sharpened(build(size, device, "sdpa"), size)
    cpu = device.type == "cpu"
    batching = (
        {"num_blocks": 64, "max_batch_tokens": 256} if cpu else {"use_cuda_graph": True, "max_memory_percent": 0.5}
    )
    keys = how | {"batching": batching}
    tell = teller("on policy", who, size, device, until, say, asked, {})
    grpo_trl.theirs(asked, model, keys, tell, bf16=precision(device) == "bfloat16")
