"""LongRoPE: one set of rotary factors for texts of every length.

A model with LongRoPE (Phi-3 with 128K, Phi-3.5, Phi-4-mini) has two sets of factors, and whoever runs it decides which
to use: transformers by the largest position of a forward, so that a long document changes the short ones packed beside
it; vLLM by the longest context that it was started with; llama.cpp by the context that it allocated. The same tokens
then have other log-probabilities in training, in sampling and on a server, and a response that grows past the border
changes what stands before it. So a run chooses one set and writes it into the config in the place of both: whoever
opens the checkpoint computes what was trained, however it would have decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from algorist import store

_PAIRS = ("factor", "mscale")  # short_… and long_…; the second is of Phi-3.5-MoE alone


def settle(model: Any, choice: Literal["long", "short"]) -> bool:
    """Give a causal LM of transformers, and the config that is saved with it, one set of factors in the place of two.

        inverse frequency_i = 1 / (factor_i theta^(2i / d))        cos and sin times sqrt(1 + ln(L / l) / ln l)

    for d rotary dimensions, L positions in all and l in the original window; the scale knows no lengths and stays as it
    was (Ding et al. 2024, LongRoPE, and the code of Phi-3). A model whose two sets are equal keeps them: it was settled
    before. With "long", a text inside the original window gets other log-probabilities than in the published model,
    which has the short set there; with "short", a text beyond it is read with factors that never saw such positions.

    Returns:
        whether the model has LongRoPE; any other is left alone
    """
    config = model.config.get_text_config()
    rope = _longrope(config)
    if rope is None:
        return False
    for name in _PAIRS:
        if f"{choice}_{name}" in rope:
            rope[f"short_{name}"] = rope[f"long_{name}"] = rope[f"{choice}_{name}"]
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if getattr(child, "rope_type", None) == "longrope":  # its frequencies were computed when it was made
                setattr(parent, name, _fresh(child, config))
    return True


def switches_at(config: Any) -> int | None:
    """The number of tokens above which a model takes its other set of factors, None where it has one or none."""
    rope = _longrope(config)
    if rope is None or all(rope.get(f"short_{name}") == rope.get(f"long_{name}") for name in _PAIRS):
        return None
    return int(rope["original_max_position_embeddings"])


def positions(config: Mapping[str, Any]) -> int | None:
    """Positions that a model knows by its config.json, YaRN's stretching counted; None where it is silent."""
    text = config.get("text_config", config)
    most = text.get("max_position_embeddings")
    rope = text.get("rope_parameters") or {}
    stretched = int(rope.get("factor", 1) * rope.get("original_max_position_embeddings", 0))
    return None if most is None else max(most, stretched)


def write_old_names(folder: Path) -> None:
    """Write what config.json says of rotary embeddings under the names of transformers 4 too, beside those of 5.

    Readers that know the old names alone take the default frequencies without a word where they find none (llama.cpp
    issue 24820, vLLM pull request 42624).
    """
    config = store.read_json(folder / "config.json")
    rope = config.get("rope_parameters") or {}
    kind = rope.get("rope_type")
    if kind is None:  # no rotary embedding, or one for each kind of layer, which had no common name
        return
    old = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    if kind == "longrope":  # Phi-3 of transformers 4 refuses any key but these
        old["rope_scaling"] = {"type": kind, **{name: rope[name] for name in ("short_factor", "long_factor")}}
    elif kind != "default":
        old["rope_scaling"] = {"type": kind, **{name: value for name, value in rope.items() if name not in old}}
    store.write_json(folder / "config.json", {**config, **old})


def _longrope(config: Any) -> dict[str, Any] | None:
    rope = getattr(config, "rope_parameters", None) or {}
    return rope if rope.get("rope_type") == "longrope" else None


def _fresh(rotary: Any, config: Any) -> nn.Module:
    """A rotary embedding of the same class, from the changed config, where the old one was."""
    made: nn.Module = type(rotary)(config)
    return made.to(rotary.inv_freq.device)
