"""Small random models of the architectures that are promised to work, and the batches that tests lay out."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from algorist.model.batches import Batch, Document, lay_out
from algorist.model.policy import Policy

KINDS = ("Phi3", "Llama", "Qwen2", "Qwen3")
VOCABULARY = 61
END = 1


def build(kind: str = "Llama", seed: int = 0, *, tied: bool = False, **more: Any) -> Any:
    """A causal LM of transformers with weights so large that its distributions are far from flat.

    `more` goes to its config.
    """
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": END,
        "pad_token_id": 0,
    }
    if kind == "Phi3":
        rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75}
        shape |= {"original_max_position_embeddings": 128, "rope_parameters": rope}
    if kind == "Qwen3":
        shape["head_dim"] = 16  # not hidden_size / num_attention_heads, as in the real ones
    shape |= more
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**shape))
        for parameter in model.parameters():
            with torch.no_grad():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.25)
                else:  # norms and, for Qwen2, the biases of query, key and value
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def policy(kind: str = "Llama", seed: int = 0, **how: Any) -> Policy:
    return Policy(build(kind, seed), **how)


def as_transformers_runs_it(policy: Policy) -> Any:
    """The same weights under transformers' own eager attention."""
    model = copy.deepcopy(policy.model)
    model.set_attn_implementation("eager")
    return model.eval()


def alone(model: Any, tokens: list[int] | tuple[int, ...], temperature: float = 1.0) -> Tensor:
    """(len,) log-probabilities of one document's tokens by a plain forward of transformers; 0 at the first."""
    logits = model(torch.tensor([list(tokens)])).logits[0, :-1] / temperature
    found = torch.log_softmax(logits, dim=1)[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:], dtype=torch.int64)]
    return torch.cat([torch.zeros(1), found])


def documents(seed: int, lengths: list[int], prompt_len: int = 2) -> list[Document]:
    """Random documents whose first `prompt_len` tokens are only read."""
    rng = np.random.default_rng(seed)
    return [Document.of(rng.integers(2, VOCABULARY, size=length).tolist(), prompt_len) for length in lengths]


def row(seed: int, lengths: list[int]) -> Batch:
    """A row of random documents in which every token but the first of each has weight."""
    return lay_out(documents(seed, lengths, prompt_len=1), total=float(sum(lengths) - len(lengths)))


def gradient(policy: Policy) -> Tensor:
    """All gradients as one vector, which are then forgotten."""
    slopes = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in policy.named_parameters()}
    parts = [slopes[name].flatten() for name in sorted(slopes)]
    policy.zero_grad(set_to_none=True)
    return torch.cat(parts)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    """Equal up to float32 rounding, measured against the largest number among the expected."""
    scale = float(expected.detach().abs().max())
    assert scale > 0, "nothing to compare"
    worst = float((found.detach() - expected.detach()).abs().max())
    assert worst <= tolerance * scale, f"largest difference {worst:.2e} beside numbers up to {scale:.2e}"
