"""Does a model compute here what it computes in transformers? Asked once of every model that comes from outside.

The policy calls trunk and output head by itself and brings its own attention (model/attention.py). A model that does
more than that would train and sample on wrong numbers without a word: scaled or capped logits, capped attention,
sinks, ALiBi, layers that are no attention. So two short documents are scored by the model as transformers runs it,
each alone, and by the policy, both in one row. What shows in longer texts alone is found in the config: a window of
attention, and rotary factors that change with the length (model/longrope.py settles those of LongRoPE).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from algorist.errors import RecipeError
from algorist.model import longrope
from algorist.model.batches import Document, lay_out
from algorist.model.policy import Policy

EXACT = "Llama, OLMo 2, Phi-3 and Phi-4, Qwen2 and 2.5, Qwen3, SmolLM3"  # families measured to be exact
_LENGTHS = (24, 20)  # tokens; similar, so that one is filled up to the other
# Nats. In small random models rounding moved no token by 1e-5, what the policy leaves out moved one by 0.04 to 5.
_TOLERANCE = 0.01


def require_exact(model: Any, source: str | Path) -> None:
    """Refuse a causal LM of transformers whose log-probabilities the policy would get wrong.

    Args:
        model   with float32 weights, in eval mode; its attention is the policy's afterwards
        source  the folder or hub name that it came from

    Raises:
        RecipeError where they differ by more than 0.01 nats at any token, cannot be computed, or would differ in
        texts longer than a window of attention.
    """
    where = f'[model] base = "{source}": {type(model).__name__}'
    config = model.config.get_text_config()
    window, longest = _window(config), getattr(config, "max_position_embeddings", math.inf)
    if window < longest:
        raise RecipeError(
            f"{where} has layers that see only the last {window:,} of up to {longest:,} tokens, and windows are not "
            f"computed here. Take a model of a family without them; known to be exact: {EXACT}."
        )
    if border := longrope.switches_at(config):
        raise RecipeError(
            f"{where} takes other rotary factors in texts longer than {border:,} tokens, so that documents of one row "
            "would change each other. Write one set of factors into both of its config's lists."
        )
    generator = torch.Generator().manual_seed(0)
    try:
        documents = [torch.randint(config.vocab_size, (length,), generator=generator) for length in _LENGTHS]
        gap = float((_theirs(model, documents) - _ours(model, documents)).abs().max())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each of the many models fails in its own way
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RecipeError(
            f"{where} cannot be run with the attention of this package ({first}). Take a model of another family; "
            f"known to be exact: {EXACT}."
        ) from error
    if not gap <= _TOLERANCE:  # NaN is no agreement
        raise RecipeError(
            f"{where} gives log-probabilities here that are {gap:.2g} nats from its own in transformers, at most "
            f"{_TOLERANCE} was expected. Take a model of another family; known to be exact: {EXACT}."
        )


def _window(config: Any) -> float:
    """The fewest tokens that any layer sees, infinite where all see everything."""
    sliding, chunk = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # one kind of layer
        return sliding if sliding and getattr(config, "use_sliding_window", True) is not False else math.inf
    found = [width for word, width in (("sliding", sliding), ("chunked", chunk)) if any(word in kind for kind in kinds)]
    return min((width for width in found if width), default=math.inf)


@torch.no_grad()
def _theirs(model: Any, documents: list[Tensor]) -> Tensor:
    """(T,) log-probabilities by transformers' plain attention, each document alone; 0 at first tokens."""
    model.set_attn_implementation("eager")
    parts = []
    for document in documents:
        tokens = document.to(model.device)
        logprobs = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].float().log_softmax(1)
        parts += [logprobs.new_zeros(1), logprobs.gather(1, tokens[1:, None])[:, 0]]
    return torch.cat(parts)


@torch.no_grad()
def _ours(model: Any, documents: list[Tensor]) -> Tensor:
    """(T,) log-probabilities by the policy, all documents in one row; 0 at first tokens."""
    policy = Policy(model)  # in float32: the check is of what is computed, not of how exactly
    row = lay_out([Document.of(document.tolist(), prompt_len=1) for document in documents])
    return policy.logprobs(row.to(policy.device))
