"""The packing plan: ours beside TRL's best-fit decreasing, in turns, in one process; and ours alone for ten millions.

    python bench/pack.py [--quick] [--both 1000000] [--ours 10000000] [--rounds 3]

Lengths are lognormal, drawn again where they exceed the 16,384 tokens of a row. `short`: median 2,600, sigma 0.75,
which gives a mean of 3,319 and a 95th percentile of 8.5K. `long`: median 7,200, sigma 0.65, mean 7,249, 14.2K.
Seconds are processor time, medians of the rounds; both sides use one thread. Memory is measured in a process of its
own that plans once before the reading: the peak of the whole process, and what of it the plan added to interpreter,
kernels and lengths. TRL's own function makes its plan from documents without contents and is stopped before it moves
tokens; without TRL it is skipped.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algorist.numerics.packing import pack

CAPACITY = 16_384  # tokens of a row
SETS = {"short": (2_600, 0.75), "long": (7_200, 0.65)}  # median, sigma
PART = 1 << 20  # lengths drawn at a time


def drawn(name: str, count: int) -> NDArray[np.int64]:
    """(count,) the seeded lengths of a set; the first of many are the lengths of few."""
    median, sigma = SETS[name]
    random, out, done = np.random.default_rng(1), np.empty(count, np.int64), 0
    while done < count:
        part = np.ceil(median * np.exp(sigma * random.standard_normal(PART)))
        part = part[part <= CAPACITY][: count - done]
        out[done : done + len(part)] = part
        done += len(part)
    return out


class Planned(Exception):
    """TRL begins to move tokens: its plan is made."""


def theirs(lengths: NDArray[np.int64]) -> Callable[[], int] | None:
    """TRL's `_pack_bfd`, up to where it has put every document into a bin; the call returns how many bins."""
    try:
        import pyarrow as pa
        from trl import data_utils
    except ImportError as error:
        print(f"TRL is skipped: {error}")
        return None
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    table = pa.table({"ids": pa.LargeListArray.from_arrays(pa.array(starts), pa.nulls(int(starts[-1])))})
    real = data_utils.pc

    def stop(*_: Any) -> None:
        raise Planned

    # No document is empty or too long here. To look for such ones TRL copies the tokens, which the clock shall not see.
    light = SimpleNamespace(
        **{name: getattr(real, name) for name in ("list_value_length", "greater", "make_struct")},
        filter=lambda values, _: values,
        list_slice=lambda column, *_: column,
        take=stop,
    )

    def run() -> int:
        data_utils.pc = light
        try:
            data_utils._pack_bfd(table, CAPACITY)
        except Planned as planned:
            assert planned.__traceback__ and planned.__traceback__.tb_next
            return len(planned.__traceback__.tb_next.tb_frame.f_locals["bins"])
        finally:
            data_utils.pc = real
        raise AssertionError("this version of TRL packs in another way")

    return run


def row(who: str, name: str, count: int, tokens: int, seconds: list[float], rows: int) -> dict[str, Any]:
    """One line of the table."""
    taken = statistics.median(seconds)
    return {
        "bench": "pack",
        "who": who,
        "set": name,
        "documents": count,
        "seconds": round(taken, 3),
        "documents_per_second": round(count / taken),
        "efficiency": round(tokens / (rows * CAPACITY), 5),
    }


def in_turns(name: str, count: int, rounds: int) -> list[dict[str, Any]]:
    """Ours and TRL's in turns, a line each."""
    lengths = drawn(name, count)
    calls: dict[str, Callable[[], int] | None] = {"ours": lambda: len(pack(lengths, CAPACITY)), "TRL": theirs(lengths)}
    taken: dict[str, list[float]] = {who: [] for who in calls}
    rows: dict[str, int] = {}
    for _ in range(rounds):
        for who, call in calls.items():
            if call:
                start = time.process_time()
                rows[who] = call()
                taken[who].append(time.process_time() - start)
    found = [row(who, name, count, int(lengths.sum()), taken[who], rows[who]) for who in rows]
    for line in found[1:]:
        line["ours_is_faster"] = round(statistics.median(taken["TRL"]) / statistics.median(taken["ours"]), 1)
    return found


def memory(peak: bool) -> int:
    """KiB of this process: the highest so far, or now. The kernel's own account, so on Linux alone."""
    said = re.search(rf"^Vm{'HWM' if peak else 'RSS'}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert said
    return int(said[1])


def alone(name: str, count: int, rounds: int) -> dict[str, Any]:
    """Ours in this process: memory from the first round, seconds from all."""
    lengths = drawn(name, count)
    pack(lengths[:1000], CAPACITY)
    before, taken = memory(peak=False), []
    told: dict[str, int] = {}
    for _ in range(rounds):
        start = time.process_time()
        rows = pack(lengths, CAPACITY)
        taken.append(time.process_time() - start)
        told = told or {"peak_mib": memory(peak=True) >> 10, "added_mib": memory(peak=True) - before >> 10}
    return row("ours", name, count, int(lengths.sum()), taken, len(rows)) | told


def main() -> None:
    """Print the table, then its lines as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10,000 and 50,000 documents, one round")
    parser.add_argument("--both", type=int, default=1_000_000, help="documents for ours and TRL in turns")
    parser.add_argument("--ours", type=int, default=10_000_000, help="documents for ours alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", choices=SETS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.both, args.ours, args.rounds = 10_000, 50_000, 1
    if args.alone:
        print(json.dumps(alone(args.alone, args.ours, args.rounds)))
        return
    pack([1], CAPACITY)  # compiles
    lines = [line for name in SETS for line in in_turns(name, args.both, args.rounds)]
    for name in SETS:
        asked = [sys.executable, __file__, "--alone", name, "--ours", str(args.ours), "--rounds", str(args.rounds)]
        lines.append(json.loads(subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True).stdout))
    print(
        f"{'':12}{'documents':>12}{'seconds':>10}{'documents/s':>14}{'efficiency':>12}{'peak / added MiB':>18}   ratio"
    )
    for line in lines:
        used = f"{line['peak_mib']} / {line['added_mib']}" if "peak_mib" in line else ""
        ratio = f"{line['ours_is_faster']} x" if "ours_is_faster" in line else ""
        print(
            f"{line['who']:5}{line['set']:7}{line['documents']:12,}{line['seconds']:10.3f}"
            f"{line['documents_per_second']:14,}{line['efficiency']:12.3%}{used:>18}   {ratio}"
        )
    for line in lines:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
