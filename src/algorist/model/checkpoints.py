"""Policies on disk, in the Hugging Face layout at every save: from_pretrained and servers open them as they are.

A checkpoint folder appears in one step: it is written beside its place and renamed. What only a resumed run needs
(optimizer state, step) lies in files of its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError

from algorist import store
from algorist.errors import RecipeError, explain_full_disk
from algorist.model import devices, selfcheck
from algorist.model.optimizers import Optimizer
from algorist.model.policy import Policy
from algorist.records import CARD, Checkpoint

transformers.utils.logging.disable_progress_bar()  # its bars for reading and writing weights cut through ours
_CRITIC = "critic.safetensors"
_OPTIMIZER = "optimizer.safetensors"


def open_policy(source: str | Path, *, precision: str, with_critic: bool = False) -> Policy:
    """The policy of a local folder or a hub name, with float32 weights, on the default device.

    A model that is not a checkpoint of ours goes through model/selfcheck.py first.

    Raises:
        RecipeError where no model can be loaded from there, or the loaded one computes something else here.
    """
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise RecipeError(
            f'[model] base = "{source}": no model could be loaded ({first}). Name a folder or a hub model.'
        ) from error
    model.to(devices.default())
    if not (Path(source) / CARD).exists():  # our own checkpoints descend from a model that was checked
        selfcheck.require_exact(model, source)
    policy = Policy(model, precision=precision, with_critic=with_critic)
    critic = Path(source) / _CRITIC
    if with_critic and critic.exists():
        policy.critic.load_state_dict(safetensors.torch.load_file(critic))  # type: ignore[union-attr]
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
            policy.model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
            if policy.critic is not None:
                safetensors.torch.save_file(policy.critic.state_dict(), draft / _CRITIC)
            if optimizer is not None:
                safetensors.torch.save_file(optimizer.state(), draft / _OPTIMIZER)
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


def load_optimizer(folder: Path, optimizer: Optimizer) -> None:
    """Take up the optimizer state saved beside a checkpoint."""
    optimizer.load(safetensors.torch.load_file(folder / _OPTIMIZER))


def card(folder: Path) -> Checkpoint:
    """The card of a checkpoint folder. Raises RecordError where there is none."""
    raw = store.read_json(folder / CARD)
    return Checkpoint(**{**raw, "parents": tuple(raw["parents"])})


def weights_id(folder: Path) -> str:
    """16 hexadecimal digits over the weight files, in name order."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        if file.name != _OPTIMIZER:
            digest.update(file.name.encode())
            with open(file, "rb") as weights:
                digest.update(hashlib.file_digest(weights, "sha256").digest())
    return digest.hexdigest()[:16]
