"""The rows of one GPU: ours, the peers, what the machine allows, and their ratio.

    python bench/gpu.py ROW [--size tiny|full] [--seconds 480] [--peers]

ROW is ceilings, attn16k, loss200k, midtrain16k, sft20k, dpo16k, decode_step, rollout or grpo_step. `full` is Phi-4-mini
with random weights, for one H200; `tiny` runs the same paths on a CPU in seconds, those of peers with --peers only.
Ceilings are measured in the same run. At full size each contender has a process of its own, all with the same allocator
(expandable segments), and ours takes turns with the peers. What is measured is told at once, and what no time is left
for is skipped; then follow the table and its lines as JSON.

`bound` is what a line would be if its operations were done as fast as the large product of matrices just measured, and
the bytes that decoding must read were read as fast as the copy; `of ceiling` is the share of it, `MFU` is over the 989
TFLOP/s of an H100 or H200. What is computed twice counts once (bench/gpu_work.py). The ratio is to the best peer whose
losses are ours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import gpu_work as work
from gpu_work import SIZES, Say

Line = dict[str, Any]
CEILINGS = "ceilings"
KERNELS = {CEILINGS: "ceilings", "attn16k": "attention", "loss200k": "loss"}  # rows → functions of gpu_kernels.py
TRAINING = ("midtrain16k", "sft20k", "dpo16k")
SAMPLING = ("decode_step", "rollout", "grpo_step")
# Relative. DPO's margins are sums over long responses, and GRPO is compared by the lengths of gradients.
DIFFERS = {"midtrain16k": 1e-2, "sft20k": 1e-2, "dpo16k": 5e-2, "grpo_step": 5e-2}
MUST_GOAL = {  # of ours on one H200, by row and set
    "attn16k": {"one document": "430 / 500"},
    "loss200k": {"0% ignored": "115 / 95"},
    "midtrain16k": {"short": "17,000 / 19,700", "one document": "12,700 / 15,100"},
    "sft20k": {"long": "14,000 / 16,000"},
    "dpo16k": {"reference pass": "42,000 / 50,000"},
    "decode_step": {"1 x 2,048": "3.0 / 2.5"},
    "rollout": {"ragged": "7,500 / 10,300"},
    "grpo_step": {"on policy": "3,500 / 6,000"},
}
TOO = {
    "attn16k": "packed rows 0.85 of one document; 1.5 / 1.8 x SDPA per document, 6 x the dense mask; best known 575",
    "loss200k": "at most 1,024 MiB extra, errors 1e-2; 2 x Liger, 1 x unfiltered cut cross-entropy",
    "midtrain16k": "1.8 / 2.2 x the best of TRL, 3 x its sdpa; at most 128 GiB",
    "sft20k": "no padding; 2 x TRL's batch 2; of ceiling within 3 % of midtrain16k's",
    "dpo16k": "policy step's share of ceiling 0.95 / 0.98 of sft20k's; 2.0 x TRL cached, 2.7 x TRL",
    "decode_step": "0.55 / 0.70 of ceiling",
    "rollout": "4 / 6 x continuous batching, 6 x generate; late 0.55 / 0.70 of ceiling; gap at most 0.02",
    "grpo_step": "3.5 / 5 x TRL, continuous batching; outside of generate and train 5 / 3 %",
}
NOTES = ("path", "recompute", "padding", "peak_gib", "error", "layout_ms", "extra_mib", "documents", "logprob_gap")
NOTES += ("outside", "phases")
CHECKED = ("loss", "reference", "norm")


def contenders(row: str, peers: bool) -> list[str]:
    """Who runs, in turns."""
    if row in KERNELS:
        return [row]
    if row in SAMPLING:
        from gpu_rollout_peers import SETTINGS
    else:
        from gpu_trl import SETTINGS
    first, second, *others = SETTINGS[row]
    if row in SAMPLING:  # the second may take all the time that is left
        return ["ours", first, "ours", second, *others] if peers else ["ours"]
    return ["ours", first, second, "ours", *others] if peers else ["ours", "ours"]


def run(row: str, who: str, size: str, until: float, say: Say) -> None:
    """One contender in this process; why it fails is told."""
    import gpu_kernels
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if row in KERNELS:
            getattr(gpu_kernels, KERNELS[row])(SIZES[size], device, until, say)
        elif who == "ours":
            if row in SAMPLING:
                from gpu_rollouts import ours
            else:
                from gpu_training import ours
            ours(row, SIZES[size], device, until, say)
        else:
            if row in SAMPLING:
                from gpu_rollout_peers import theirs
            else:
                from gpu_trl import theirs
            theirs(row, who, SIZES[size], device, until, say)
    except Exception as reason:  # peers fail in ways of their own
        traceback.print_exc()
        say({"set": "", "who": who, "failed": gpu_kernels.first_line(reason)})


def apart(row: str, who: str, size: str, until: float) -> Iterator[Line]:
    """The same in a process of its own, which is ended when time is up; lines that are no measurement are printed."""
    words = [sys.executable, __file__, row, "--size", size, "--child", who, "--until", str(until)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=_environment()) as child:
        timer = threading.Timer(max(0.0, work.left(until)), child.kill)
        timer.start()
        assert child.stdout
        for text in child.stdout:
            if text.startswith('{"set"'):
                yield json.loads(text)
            else:
                print(f"  {text.rstrip()}")
        timer.cancel()
    if child.returncode:
        reason = f"it ended with status {child.returncode}" if work.left(until) > 0 else "no time was left"
        yield {"set": "", "who": who, "failed": reason}


def _environment() -> dict[str, str]:
    # Rows of other lengths need other blocks, which the allocator would keep beside the old ones.
    return {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def measure(row: str, size: str, until: float, peers: bool) -> Iterator[Line]:
    """Every measurement of a row, ceilings first, as they are done."""
    asked = [(CEILINGS, CEILINGS)] if row != CEILINGS else []
    for name, who in [*asked, *((row, who) for who in contenders(row, peers))]:
        if work.left(until) < (30 if size == "full" else 0):
            yield {"set": "", "who": who, "failed": "no time was left"}
        elif size == "full":
            yield from apart(name, who, size, until)
        else:
            told: list[Line] = []
            run(name, who, size, until, told.append)
            yield from told


def told(line: Line) -> str:
    """A measurement in a few words."""
    place = f"{line['set']}, {line['who']}" if line["set"] else line["who"]
    if "failed" in line:
        return f"  {place}: skipped, {line['failed']}"
    warm = "" if line.get("timed", True) else " (warms up)"
    return f"  {place}: {line['value']:,.4g} {line['unit']}{warm}"


def table(row: str, lines: list[Line]) -> list[Line]:
    """A line for each set and contender: medians, checks beside ours, ratios."""
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if "failed" not in line:
            found.setdefault((line["set"], line["who"]), []).append(line)
    ceilings = {one["set"].split()[0]: one["value"] * 1e12 for one in lines if one["who"] == "this machine"}
    out = []
    for (name, who), all_of_them in found.items():
        some = [one for one in all_of_them if one.get("timed", True)]
        if not some:
            continue
        gap = difference(all_of_them, [one for one in lines if one["who"] == "ours" and one["set"] == name])
        made: Line = {"bench": f"gpu.{row}", "set": name, "who": who, "unit": some[0]["unit"]}
        made["value"] = statistics.median(one["value"] for one in some)
        if {"operations", "bytes"} & some[0].keys() and ceilings:
            made["of_ceiling"] = statistics.median(least(one, ceilings) / one["seconds"] for one in some)
            made["bound"] = bound(some[0], least(some[0], ceilings))
        if "operations" in some[0] and "bytes" not in some[0] and some[0].get("device") == "cuda":
            made["mfu"] = statistics.median(one["operations"] / one["seconds"] for one in some) / work.PEAK
        made |= {key: some[-1][key] for key in NOTES if key in some[-1]}
        made |= {"loss_gap": gap} if gap is not None else {}
        out.append(made)
    for made in out:
        best = [one for one in out if one["set"] == made["set"] and is_peer(row, one)]
        if best:
            top = (min if made["unit"] == "ms" else max)(one["value"] for one in best)
            made["ratio"] = top / made["value"] if made["unit"] == "ms" else made["value"] / top
    return out


def is_peer(row: str, line: Line) -> bool:
    """Whether ratios may be taken to a line of the table."""
    sound = line.get("loss_gap", 0.0) <= DIFFERS.get(row, 0.0)
    return not line["who"].startswith(("ours", "this")) and sound


def difference(lines: list[Line], ours: list[Line]) -> float | None:
    """The largest relative difference of what both computed: losses, log-probabilities of the reference."""
    gaps = []
    for line in lines:
        for own in ours:
            if line.get("turn") == own.get("turn") and line is not own:
                shared = [key for key in CHECKED if key in line and key in own]
                gaps += [abs(line[key] - own[key]) / abs(own[key]) for key in shared]
    return max(gaps, default=None)


def least(line: Line, ceilings: dict[str, float]) -> float:
    """Seconds that the operations and bytes of a line take at the rates of this machine."""
    return float(line.get("operations", 0) / ceilings["matmul"] + line.get("bytes", 0) / ceilings["copy"])


def bound(line: Line, seconds: float) -> float:
    """What the value of a line would be if it took so long."""
    per_second = {"tokens/s": line.get("tokens", 0), "TFLOP/s": line.get("operations", 0) / 1e12}
    return 1e3 * seconds if line["unit"] == "ms" else float(per_second[line["unit"]] / seconds)


def show(row: str, size: str, lines: list[Line]) -> None:
    """The table, and its lines as JSON."""
    import torch

    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"gpu.{row}, size {size}, {where}, torch {torch.__version__}")
    head = ("value", "", "bound", "of ceiling", "MFU", "x best peer", "must / goal")
    print("  {:16}{:34}{:>10} {:9}{:>10}{:>12}{:>7}{:>13}{:>18}".format("", "", *head))
    found = table(row, lines)
    for line in found:
        asked = MUST_GOAL.get(row, {}).get(line["set"], "") if line["who"].startswith("ours") else ""
        cells = [_cell(line, "bound", ",.4g"), *(_cell(line, key, ".3f") for key in ("of_ceiling", "mfu"))]
        first = f"  {line['set']:16}{line['who']:34}{line['value']:10,.5g} {line['unit']:9}"
        cells += [_cell(line, "ratio", ".2f"), asked]
        print((first + "{:>10}{:>12}{:>7}{:>13}{:>18}  ".format(*cells) + notes(row, line)).rstrip())
    if row in TOO:
        print(f"  must / goal too: {TOO[row]}")
    for line in found:
        rounded = {key: float(f"{v:.5g}") if isinstance(v, float) else v for key, v in line.items()}
        print(json.dumps(rounded | {"size": size, "device": where, "torch": torch.__version__}))


def _cell(line: Line, key: str, form: str) -> str:
    return format(line[key], form) if key in line else ""


def notes(row: str, line: Line) -> str:
    """What else is known of a line."""
    known = {key.replace("_", " "): line[key] for key in NOTES if key in line}
    said = [f"{key} {v:.2g}" if isinstance(v, float) else f"{key} {v}" for key, v in known.items()]
    if "loss_gap" in line:
        judged = "" if line["loss_gap"] <= DIFFERS.get(row, 0.0) else " (too far: no peer)"
        what = "gradient norms" if row == "grpo_step" else "losses"
        said.append(f"{what} within {line['loss_gap']:.1e}{judged}")
    return ", ".join(said)


def main() -> None:
    """One row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=[*KERNELS, *TRAINING, *SAMPLING], type=lambda name: name.removeprefix("gpu."))
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--seconds", type=float, default=480, help="that all of it may take")
    parser.add_argument("--peers", action="store_true", help="run peers at tiny size too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    until = args.until or time.time() + args.seconds
    if args.child:
        run(args.row, args.child, args.size, until, lambda line: print(json.dumps(line), flush=True))
        return
    import torch

    size = args.size or ("full" if torch.cuda.is_available() else "tiny")
    if size == "full" and not torch.cuda.is_available():
        parser.error("--size full needs a CUDA device")
    lines = []
    for line in measure(args.row, size, until - 10 * (size == "full"), args.peers or size == "full"):
        print(told(line), flush=True)
        lines.append(line)
    show(args.row, size, lines)


if __name__ == "__main__":
    main()
