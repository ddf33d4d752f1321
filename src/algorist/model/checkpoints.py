"""Policies on disk, in the Hugging Face layout at every save: from_pretrained and servers open them as they are.

A checkpoint folder appears in one step: it is written beside its place and renamed. What only a resumed run needs
(optimizer state, adapters, step) lies in files of its own: the weights of a folder are always those of the whole
model, with its adapters merged into them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError

from algorist import store
from algorist.errors import RecipeError, explain_full_disk
from algorist.model import chat, devices, longrope, lora, probe, selfcheck
from algorist.model.optimizers import Optimizer
from algorist.model.policy import CriticKind, Policy
from algorist.records import CARD, Checkpoint

transformers.utils.logging.disable_progress_bar()  # its bars for reading and writing weights cut through ours
_CRITIC = "critic.safetensors"
_ADAPTERS = "adapters.safetensors"
_OPTIMIZER = "optimizer.safetensors"


def open_policy(
    source: str | Path,
    *,
    precision: str,
    weights: str = "float32",
    rope: Literal["long", "short"] = "long",
    attention: str = "auto",
    tokens: int = 16_384,
    critic: CriticKind = "none",
) -> Policy:
    """The policy of a local folder or a hub name, on the default device.

    A model that is not a checkpoint of ours goes through model/selfcheck.py first, in float32.

    Args:
        source       of the model
        precision    of matrix products, "float32" or "bfloat16"
        weights      the type that the model's weights are held in, "float32" or "bfloat16"; a critic's are float32
        rope         "long" or "short": which factors a model with LongRoPE gets for all lengths (model/longrope.py)
        attention    "auto", or a path of model/kernels.py (model/probe.py)
        tokens       of the rows that it will see, for which the fastest path is sought
        critic       whether there is a critic beside the model and of which kind; the saved one where there is one

    Raises:
        RecipeError where no model can be loaded from there, the loaded one computes something else here, or the path
        of attention cannot run.
    """
    ours = (Path(source) / CARD).exists()  # descends from a model that was checked and settled
    held = getattr(torch, weights)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(str(source), dtype=held if ours else torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise RecipeError(
            f'[model] base = "{source}": no model could be loaded ({first}). Name a folder or a hub model.'
        ) from error
    if not ours:
        longrope.settle(model, rope)
    model.to(devices.default())
    if not ours:
        selfcheck.require_exact(model, source)
        for parameter in model.parameters():  # and not the buffers: a rotary embedding needs all its bits
            parameter.data = parameter.data.to(held)
    shape = probe.Shape.of(model.config, tokens)
    path = probe.choose(shape, devices.default(), getattr(torch, precision), path=attention).name
    policy = Policy(model, precision=precision, critic=critic, path=path)
    _load_critic(policy, Path(source))
    return policy.to(devices.default())


def save(
    folder: Path, policy: Policy, tokenizer: Any, card: Checkpoint, optimizer: Optimizer | None = None
) -> Checkpoint:
    """Write a checkpoint folder, in place of what stood there; its card gets the hash of the weights as id."""
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        with explain_full_disk(folder):
            chat.name_ends(policy.model, tokenizer)
            adapted = lora.attached(policy.model)
            policy.model.save_pretrained(draft, state_dict=lora.merged(policy.model) if adapted else None)
            longrope.write_old_names(draft)
            chat.save_tokenizer(tokenizer, draft)
            if policy.critic is not None:
                safetensors.torch.save_file(policy.critic.state_dict(), draft / _CRITIC)
            if optimizer is not None:
                safetensors.torch.save_file(optimizer.state(), draft / _OPTIMIZER)
            if optimizer is not None and adapted:
                safetensors.torch.save_file(lora.tensors(policy.model), draft / _ADAPTERS)
            card = Checkpoint(**{**asdict(card), "id": weights_id(draft), "parents": card.parents})
            store.write_json(draft / CARD, asdict(card))
            for path in draft.rglob("*"):  # a tokenizer with several chat templates has a folder for them
                if path.is_file():
                    with open(path, "rb") as written:
                        os.fsync(written.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return card


def resume(folder: Path, policy: Policy, optimizer: Optimizer) -> int:
    """Take up what `save` wrote beside the weights for a run that goes on; the step to go on with.

    A policy without adapters was opened from this folder, one with adapters from the folder that they were attached
    to: the merged weights are rounded.
    """
    if lora.attached(policy.model):
        lora.load(policy.model, safetensors.torch.load_file(folder / _ADAPTERS))
    _load_critic(policy, folder)
    optimizer.load(safetensors.torch.load_file(folder / _OPTIMIZER))
    return card(folder).step


def card(folder: Path) -> Checkpoint:
    """The card of a checkpoint folder. Raises RecordError where there is none."""
    raw = store.read_json(folder / CARD)
    return Checkpoint(**{**raw, "parents": tuple(raw["parents"])})


def weights_id(folder: Path) -> str:
    """16 hexadecimal digits over the weight files, in name order."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        if file.name not in (_OPTIMIZER, _ADAPTERS):
            digest.update(file.name.encode())
            with open(file, "rb") as weights:
                digest.update(hashlib.file_digest(weights, "sha256").digest())
    return digest.hexdigest()[:16]


def _load_critic(policy: Policy, folder: Path) -> None:
    if policy.critic is not None and (folder / _CRITIC).exists():
        policy.critic.load_state_dict(safetensors.torch.load_file(folder / _CRITIC))
