"""The reference of stage 3: what the model that the stage starts from thinks of every response, computed once.

Its log-probabilities stand with the pairs. Beside them stands what they are of: the model with its config, the types
that it is held and computed in, the vocabulary that the token ids belong to, and the words around a problem. Where
one of these is another now, they are refused: a stale reference would hold the policy to a model that it did not
start from, and nothing else would show it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from algorist import store
from algorist.errors import RunError
from algorist.model import checkpoints
from algorist.model.batches import Document, cut_lengths, lay_out
from algorist.model.policy import Policy, document_sums
from algorist.records import Pair, content_id
from algorist.stage import Run

FILE = "reference.json"  # in the folder of the pairs
_UNREAD = ("transformers_version", "_name_or_path")  # of config.json: what the model computes does not depend on them


def key(run: Run) -> dict[str, str]:
    """What the log-probabilities of the stored token ids are of, each part by its hash or name."""
    chat, parent = run.chat, Path(run.parent)
    config = {name: value for name, value in store.read_json(parent / "config.json").items() if name not in _UNREAD}
    return {
        "model": checkpoints.card(parent).id,
        "config": content_id(config),
        "tokenizer": content_id(sorted(chat.tokenizer.get_vocab().items())),
        "chat template": content_id(chat.tokenizer.chat_template, chat.prompt, chat.end),
        "precision": run.precision,
        "weights": run.weights,
    }


def require(run: Run) -> None:
    """Raises RunError unless the stored log-probabilities are of the model, tokenizer and template of this run."""
    path = run.data / FILE
    again = f"Delete the folder {run.data} and run the same command again: they are computed anew."
    if not path.exists():
        raise RunError(f"{path}: is missing, so nothing says what the reference log-probabilities are of. {again}")
    stored, now = store.read_json(path), key(run)
    stale = [f"{name} {stored.get(name)}, now it is {now[name]}" for name in now if stored.get(name) != now[name]]
    if stale:
        raise RunError(f"{path}: the reference log-probabilities are of {'; of '.join(stale)}. {again}")


def read(folder: Path) -> NDArray[np.float32]:
    """(P, 2) the stored log-probabilities of the pairs of a finished data set, chosen and rejected."""
    names = ("chosen_ref_logprob", "rejected_ref_logprob")
    tables = [store.read_columns(folder / shard, names) for shard in store.manifest_of(folder, Pair).shards]
    parts = [np.stack([table[name].to_numpy() for name in names], axis=1) for table in tables]
    return np.concatenate([np.empty((0, 2)), *parts]).astype(np.float32)


@torch.no_grad()
def logprobs(
    policy: Policy, documents: Sequence[Document], tokens_per_batch: int, advance: Callable[[int], object]
) -> NDArray[np.float64]:
    """(D,) summed log-probabilities of the responses; `advance` is told how many documents are done.

    The longest documents come first, those of similar length together: batches are full and the progress is even.
    """
    lengths = np.array([len(document.tokens) for document in documents], np.int64)
    order = np.argsort(-lengths, kind="stable")
    found = np.empty(len(documents))
    for part in cut_lengths(lengths[order].tolist(), tokens_per_batch):
        places = order[part]
        rows = lay_out([documents[place] for place in places]).to(policy.device)
        found[places] = document_sums(policy.logprobs(rows), rows).cpu().numpy()
        advance(len(part))
    return found
