"""Token ids on disk: flat files of numbers beside the shards that say how long each document is.

Beside a shard 00000.parquet of Samples or Pairs stands 00000.ids: the token ids of its records, little-endian int32,
one document behind the other (of a pair the chosen one, then the rejected one), and at the very end 16 hexadecimal
digits, the hash of all of them, which the footer of the shard repeats. Training plans from the lengths alone and reads
a document when its step comes, so that memory holds twelve bytes a document, however long the documents are.

Documents are read, not mapped into memory: pages that were once touched through a map count as the process's own, and
after an epoch that would be the whole corpus.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algorist import store
from algorist.errors import RecordError
from algorist.records import Pair, Sample

Ids = NDArray[np.int32]
_LENGTHS: dict[type[Any], tuple[str, ...]] = {Sample: ("num_tokens",), Pair: ("num_chosen", "num_rejected")}
_DISK = np.dtype("<i4")
_DIGITS = 16  # of the hash at the end of a file


def digest(sequences: Sequence[Ids]) -> str:
    """16 hexadecimal digits that depend on every token id of the sequences laid one behind the other."""
    found = hashlib.sha256()
    for sequence in sequences:
        found.update(np.ascontiguousarray(sequence, _DISK).data)
    return found.hexdigest()[:_DIGITS]


def write_shard(
    folder: Path,
    index: int,
    kind: type[Any],
    records: Sequence[Any],
    sequences: Sequence[Ids],
    *,
    dropped: Mapping[str, int] | None = None,
    made_from: str = "",
) -> Path:
    """Write one shard of Samples or Pairs, its token ids first: a shard that is there has them.

    Args:
        sequences  the token ids of each record in turn; of a Pair two, the chosen ones and the rejected ones
        dropped, made_from  as store.write_shard takes them
    """
    lengths = [getattr(record, name) for record in records for name in _LENGTHS[kind]]
    assert lengths == [len(sequence) for sequence in sequences], "the records say how long their token ids are"
    made = digest(sequences)
    with store.replacing(folder / f"{index:05d}.ids") as draft, open(draft, "wb") as file:
        for sequence in sequences:
            file.write(np.ascontiguousarray(sequence, _DISK).data)
        file.write(made.encode())
    return store.write_shard(folder, index, kind, records, dropped=dropped, made_from=made_from, ids=made)


def write(
    folder: Path,
    kind: type[Any],
    records: Sequence[Any],
    sequences: Sequence[Ids],
    *,
    dropped: Mapping[str, int] | None = None,
    shard_rows: int = 50_000,
) -> store.Manifest:
    """Write a whole data set of Samples or Pairs, in place of whatever the folder held."""
    (folder / store.MANIFEST).unlink(missing_ok=True)
    each = len(_LENGTHS[kind])
    shards = []
    for index, start in enumerate(range(0, max(len(records), 1), shard_rows)):
        end = start + shard_rows
        shard = write_shard(folder, index, kind, records[start:end], sequences[each * start : each * end])
        shards.append(shard.name)
    return store.finish(folder, kind, dropped=dropped, shards=shards)


def finished(shard: Path, made_from: str) -> bool:
    """Whether the shard is there, with its token ids, and was computed from the same."""
    try:
        said = store.facts(shard)
        return said.made_from == made_from and _ending(shard.with_suffix(".ids")) == said.ids
    except (RecordError, OSError):
        return False


@dataclass(frozen=True)
class Corpus:
    """The documents of a finished data set: where each lies, in memory, and its token ids, on disk.

    Documents stand in the order of the records; of Pairs, document 2p is the chosen one of pair p, 2p + 1 the rejected
    one. `corpus[i]` reads the token ids of document i, (n,) int32.
    """

    prompt_lens: Ids  # (D,) how many tokens of each belong to the prompt
    starts: NDArray[np.int64]  # (D + 1,) where each begins, in tokens from the first one of the first shard
    files: tuple[Path, ...]  # (S,) of token ids
    firsts: NDArray[np.int64]  # (S + 1,) the first document of each file, and D

    @classmethod
    def open(cls, folder: Path, kind: type[Any]) -> Corpus:
        """The corpus of a data set of Samples or Pairs. Reads lengths, and no token id.

        Raises:
            RecordError where the data set is not finished or of another kind, and where a file of token ids is
            missing, of the wrong size, or of another shard than the one beside it.
        """
        shards = [folder / shard for shard in store.manifest_of(folder, kind).shards]
        lengths, prompts, firsts = [np.empty(0, np.int32)], [np.empty(0, np.int32)], [0]
        for shard in shards:
            own, prompt = _lengths(shard, kind)
            _check(shard, int(own.sum(dtype=np.int64)))
            lengths.append(own)
            prompts.append(prompt)
            firsts.append(firsts[-1] + len(own))
        starts = np.zeros(firsts[-1] + 1, np.int64)
        np.cumsum(np.concatenate(lengths), out=starts[1:])
        files = tuple(shard.with_suffix(".ids") for shard in shards)
        return cls(np.concatenate(prompts), starts, files, np.array(firsts, np.int64))

    def __len__(self) -> int:
        """How many documents there are."""
        return len(self.prompt_lens)

    @property
    def lengths(self) -> Ids:
        """(D,) tokens of each document."""
        return np.diff(self.starts).astype(np.int32)

    def __getitem__(self, place: int) -> Ids:
        """(n,) the token ids of one document, read-only. Raises RecordError where the file has lost them."""
        if not 0 <= place < len(self):
            raise IndexError(f"document {place} of {len(self)}")
        file = int(np.searchsorted(self.firsts, place, side="right")) - 1
        start, end = self.starts[place], self.starts[place + 1]
        offset, size = (int(n) * _DISK.itemsize for n in (start - self.starts[self.firsts[file]], end - start))
        try:
            with open(self.files[file], "rb", buffering=0) as opened:
                found = os.pread(opened.fileno(), size, offset)
        except OSError as error:
            raise _refused(self.files[file], f"not readable ({error.strerror})") from None
        if len(found) != size:
            raise _refused(self.files[file], f"ends before document {place}, which was there when the stage began")
        return np.frombuffer(found, _DISK).astype(np.int32, copy=False)


def _lengths(shard: Path, kind: type[Any]) -> tuple[Ids, Ids]:
    """(D,) tokens and (D,) prompt tokens of the documents of a shard."""
    names = [*_LENGTHS[kind], "prompt_len"]
    if lacking := set(names) - set(store.columns(shard)):
        raise _refused(shard, f"has no column {min(lacking)}: an older version wrote it, with the token ids in it")
    table = store.read_columns(shard, names)
    *sides, prompts = (table[name].to_numpy().astype(np.int32) for name in names)
    return np.stack(sides, axis=1).reshape(-1), np.repeat(prompts, len(sides))


def _check(shard: Path, tokens: int) -> None:
    """Refuse a file of token ids that is not the shard's own; no more than its end is read."""
    path, wanted = shard.with_suffix(".ids"), tokens * _DISK.itemsize + _DIGITS
    if not path.exists():
        raise _refused(path, f"there is no such file; the token ids of {shard.name} were expected in it")
    if (size := path.stat().st_size) != wanted:
        raise _refused(path, f"holds {size:,} bytes, {wanted:,} were expected for the {tokens:,} tokens of {shard}")
    if (ending := _ending(path)) != (said := store.facts(shard).ids):
        raise _refused(path, f"holds the token ids {ending}, {said or 'others'} belong to {shard.name} beside it")


def _ending(path: Path) -> str:
    """The hash that a file of token ids ends in."""
    with open(path, "rb") as file:
        file.seek(-_DIGITS, os.SEEK_END)
        return file.read().decode("ascii", "replace")


def _refused(path: Path, what: str) -> RecordError:
    return RecordError(f"{path}: {what}. Delete the folder {path.parent} to make it again.")
