"""Packed rows from disk to tensors: ours beside Hugging Face datasets with TRL's collator, in turns, each in a process.

    python bench/loader.py [--quick] [--rows 50000] [--peers 2000] [--length 16384] [--rounds 3]

Documents are random token ids of lognormal lengths (of rows of 16,384: median 2,600, sigma 0.75, none longer than a
row), prompts a tenth of them. The same packed rows are written as our flat files and as an Arrow data set with
input_ids, labels and seq_lengths. A side reads rows in random order, eight of them an optimizer step and about one a
micro-batch: ours through the steps of stage 1, theirs through a DataLoader and TRL's collator without padding, from
Arrow as lists (its default) or as arrays. Peers get the first `--peers` rows. Rates are of wall time, the first step
not counted; `ms/row` is processor time, that of workers too. `resume` is from a process with everything imported to
the first step in the middle of an epoch, which must be the one that an undisturbed epoch has there. Memory is what
the process holds once the first step is there, and what the rest of the rows add, pages of mapped files included.
`ratio` is of processor time. What is not installed is skipped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from algorist import recipe, store, tokens
from algorist.numerics.packing import pack
from algorist.records import Sample
from algorist.stage import Run
from algorist.stages import midtrain

VOCABULARY, SHARD, SEED = 200_064, 5_000, 1
ROWS_A_STEP = 8
Told = dict[str, Any]


def write(root: Path, rows: int, peers: int, length: int) -> int:
    """Both data sets; returns how many rows ours packs into."""
    draw = np.random.default_rng(SEED)
    drawn = np.ceil(2_600 * length / 16_384 * np.exp(0.75 * draw.standard_normal(8 * rows))).astype(np.int32)
    lengths = drawn[(drawn > 1) & (drawn <= length)]
    lengths = lengths[: np.searchsorted(np.cumsum(lengths, dtype=np.int64), rows * length)]
    packed = pack(lengths, length)
    for index, start in enumerate(range(0, len(lengths), SHARD)):
        own = lengths[start : start + SHARD].tolist()
        said = [ids_of(start + place, size) for place, size in enumerate(own)]
        records = [Sample(f"{start + i}", "", "", size, max(1, size // 10)) for i, size in enumerate(own)]
        tokens.write_shard(root / "midtrain" / "data", index, Sample, records, said)
    store.finish(root / "midtrain" / "data", Sample)
    (root / "recipe.toml").write_text(f'name = "bench"\nseed = {SEED}\n')
    try:
        write_arrow(root / "arrow", [packed[row] for row in range(min(peers, len(packed)))], lengths)
    except ImportError as error:
        print(f"datasets is skipped: {error}")
    return len(packed)


def ids_of(document: int, size: int) -> tokens.Ids:
    """The token ids of one document."""
    return np.random.default_rng([SEED, document]).integers(0, VOCABULARY, size, np.int32)


def write_arrow(folder: Path, rows: list[Any], lengths: Any) -> None:
    """Rows as TRL's packing leaves them."""
    import datasets
    import pyarrow as pa

    parts = []
    for start in range(0, len(rows), 500):
        some = rows[start : start + 500]
        said = [np.concatenate([ids_of(int(one), int(lengths[one])) for one in row]) for row in some]
        labels = [np.concatenate([labels_of(int(one), int(lengths[one])) for one in row]) for row in some]
        columns = {"input_ids": said, "labels": labels, "seq_lengths": [lengths[row] for row in some]}
        table = {name: listed(pa, column) for name, column in columns.items()}
        parts.append(datasets.Dataset(pa.table(table)))
    datasets.concatenate_datasets(parts).save_to_disk(str(folder))


def labels_of(document: int, size: int) -> tokens.Ids:
    """The same ids, those of the prompt left out."""
    found = ids_of(document, size)
    found[: max(1, size // 10)] = -100
    return found


def listed(pa: Any, column: list[Any]) -> Any:
    """Arrays as an Arrow column of lists."""
    starts = np.cumsum([0, *map(len, column)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(starts), pa.array(np.concatenate(column)))


def ours(root: Path, length: int) -> Callable[[int], Iterator[Any]]:
    """The steps of an epoch of stage 1 from one of them on."""
    keys = [f"sequence_length={length}", f"batch_size={ROWS_A_STEP}", f"tokens_per_batch={length}", "epochs=1"]
    sections = {"midtrain": (midtrain.Settings, midtrain.STAGE.training)}
    said = recipe.read(root / "recipe.toml", sections, [f"midtrain.{key}" for key in keys])
    run = Run(said, root, midtrain.STAGE, "", cast(Any, None), "float32")
    return lambda first: midtrain.steps(replace(run, start=first), cast(Any, None))


def theirs(root: Path, form: str | None, workers: int) -> Callable[[int], Iterator[Any]]:
    """The same of a DataLoader as transformers' Trainer builds it, resumed as it resumes, rows gathered as it does."""
    import datasets
    import torch
    from accelerate import skip_first_batches  # type: ignore[import-untyped]
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    def steps(first: int) -> Iterator[Any]:
        data = datasets.load_from_disk(str(root / "arrow")).with_format(form)
        collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
        sampler = torch.utils.data.RandomSampler(data, generator=torch.Generator().manual_seed(SEED))
        loader: Any = torch.utils.data.DataLoader(
            data, batch_size=1, sampler=sampler, collate_fn=collate, num_workers=workers
        )
        batches = iter(skip_first_batches(loader, first * ROWS_A_STEP) if first else loader)
        while step := list(itertools.islice(batches, ROWS_A_STEP)):
            yield step

    return steps


def ids(step: Any) -> list[int]:
    """The token ids of all micro-batches of a step."""
    parts: list[Any] = [one.tokens for one in getattr(step, "batches", ())] or [one["input_ids"][0] for one in step]
    return [token for part in parts for token in part.tolist()]


SIDES: dict[str, Callable[[Path, int], Callable[[int], Iterator[Any]]]] = {
    "ours": ours,
    "TRL, lists, no workers": lambda root, _: theirs(root, None, 0),
    "TRL, lists, 2 workers": lambda root, _: theirs(root, None, 2),
    "TRL, numpy, no workers": lambda root, _: theirs(root, "numpy", 0),
    "TRL, numpy, 2 workers": lambda root, _: theirs(root, "numpy", 2),
}


def memory() -> int:
    """MiB that this process holds now. The kernel's own account, so on Linux alone."""
    said = re.search(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert said
    return int(said[1]) >> 10


def worked() -> float:
    """Seconds of processor time that this process and its finished children took."""
    return sum(os.times()[:4])


def measure(side: str, root: Path, length: int, rows: int) -> Told:
    """One side in this process: an epoch of so many rows, then a resumption in the middle of another."""
    steps = SIDES[side](root, length)
    half, middle = rows // ROWS_A_STEP // 2, list[int]()
    epoch = steps(0)
    next(epoch)
    held, start, busy = memory(), time.perf_counter(), worked()
    for place, step in enumerate(epoch, 1):
        if place == half:
            middle = ids(step)
    spent, added, busy = time.perf_counter() - start, memory() - held, worked() - busy
    start = time.perf_counter()
    resumed = next(steps(half))
    waited = time.perf_counter() - start
    assert ids(resumed) == middle, "the resumed epoch goes on with other rows"
    read = rows - ROWS_A_STEP
    found = {"rows": rows, "rows_per_second": round(read / spent, 1), "ms_per_row": round(1000 * busy / read, 3)}
    found |= {"resume_seconds": round(waited, 4)}
    return {"bench": "loader", "side": side, **found, "held_mib": held, "added_mib": added}


def main() -> None:
    """Print the table, then its lines as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="800 rows of 2,048 tokens, 160 for peers, one round")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--peers", type=int, default=2_000, help="rows for each peer")
    parser.add_argument("--length", type=int, default=16_384, help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.rows, args.peers, args.length, args.rounds = 800, 160, 2_048, 1
    if args.measure:
        side, root, rows = args.measure
        print(json.dumps(measure(side, Path(root), args.length, int(rows))))
        return
    with tempfile.TemporaryDirectory() as folder:
        packed = write(Path(folder), args.rows, args.peers, args.length)
        sides = {side: packed if side == "ours" else min(args.peers, packed) for side in SIDES}
        if not (Path(folder) / "arrow").exists():
            sides = {"ours": packed}
        found: dict[str, list[Told]] = {side: [] for side in sides}
        for _ in range(args.rounds):
            for side, rows in sides.items():
                asked = [sys.executable, __file__, "--length", str(args.length), "--measure", side, folder, str(rows)]
                said = subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True).stdout
                found[side].append(json.loads(said.splitlines()[-1]))
    names = ("rows_per_second", "ms_per_row", "resume_seconds", "held_mib", "added_mib")
    lines = [
        {**told[0], **{name: statistics.median(one[name] for one in told) for name in names}} for told in found.values()
    ]
    print(f"{'':26}{'rows':>8}{'rows/s':>10}{'ms/row':>9}{'resume s':>10}{'held MiB':>10}{'added MiB':>11}   ratio")
    for line in lines:
        line["ours_is_faster"] = round(line["ms_per_row"] / lines[0]["ms_per_row"], 1)  # in processor time
        print(
            f"{line['side']:26}{line['rows']:8,}{line['rows_per_second']:10,.1f}{line['ms_per_row']:9.2f}{line['resume_seconds']:10.3f}"
            f"{line['held_mib']:10,.0f}{line['added_mib']:11,.0f}   {line['ours_is_faster']} x"
        )
    for line in lines:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
