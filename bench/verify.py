r"""Verdicts per second, right verdicts and worst cases of ours beside math-verify, on the same pairs, interleaved.

    python bench/verify.py [--rounds 5] [--pairs 2000] [--quick]

The pairs are made here from a seed: 55 % integers, 15 % fractions, 30 % symbolic, half of them wrong by a little, each
with a label that is true by construction. No expression comes twice, in no round, so that no cache helps anybody;
a right integer may be written like its gold, as it is in life. Rates are per second of processor time, so that a busy
machine blurs them less; a block of ours and the same block of theirs take turns. The twelve pathological pairs go
through a Pool (ours) and through math-verify with its own limit of 5 seconds, in a process killed after 30.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from algorist.records import Rollout
from algorist.verify.conventions import Conventions
from algorist.verify.equal import equal, verifier
from algorist.verify.extract import answer_in, extract
from algorist.verify.pool import Pool

AS_ANSWERS = Conventions(unevaluated=True)  # as `algorist verify` judges bare answers
DEV = Path(__file__).parents[1] / "../shared/data/verifier_dev.jsonl"
KILLED_AFTER = 30.0  # seconds for one of their pathological cases; their own limit is a signal, which C code ignores

Pair = tuple[str, str, bool]  # gold, candidate, whether they are equal
Chooser = random.Random
Judge = Callable[[str, str], bool | None]


def integer(pick: Chooser) -> Pair:
    """Up to seven digits; right in another spelling, or off by one, by two digits swapped, by a sign, by a zero."""
    value = pick.choice([1, 1, 1, -1]) * pick.randrange(2, 10 ** pick.randrange(3, 8))
    if pick.random() < 0.5:
        return str(value), pick.choice([str(value), str(value), f"{value:,}", f"{value}.0", rf"{value}\!"]), True
    digits = str(abs(value))
    swapped = int(digits[:-2] + digits[-1] + digits[-2]) if len(digits) > 1 else value
    misses = {value + 1, value - 1, -value, 10 * value, swapped} - {value}
    return str(value), str(pick.choice(sorted(misses))), False


def fraction(pick: Chooser) -> Pair:
    """Right as another fraction or a decimal, or wrong in one number."""
    below, above = pick.choice([2, 3, 4, 5, 7, 8, 9, 11, 16, 25, 125, 997]), pick.randrange(1, 20_000)
    gold = rf"\frac{{{above}}}{{{below}}}"
    if pick.random() < 0.5:
        times = pick.randrange(2, 9)
        spellings = [
            f"{above}/{below}",
            rf"\dfrac{{{above}}}{{{below}}}",
            rf"\frac{{{times * above}}}{{{times * below}}}",
        ]
        if 1000 % below == 0:
            spellings.append(f"{above / below:.3f}")
        return gold, pick.choice(spellings), True
    wrong = pick.choice([(above + 1, below), (above, below + 1), (-above, below), (above + below, below)])
    return gold, pick.choice([f"{wrong[0]}/{wrong[1]}", rf"\frac{{{wrong[0]}}}{{{wrong[1]}}}"]), False


def surd(pick: Chooser) -> Pair:
    """a√b and the like, the root partly drawn, rationalised or reordered."""
    a, c = pick.randrange(2, 60), pick.randrange(2, 400)
    b = pick.choice([n for n in range(2, 160) if int(n**0.5) ** 2 != n])
    right = pick.random() < 0.5
    off = 0 if right else pick.choice([-1, 1])
    gold, candidate = pick.choice(
        [
            (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b + off}}}"),
            (rf"\frac{{{a}\sqrt{{{b}}}}}{{{b}}}", rf"\frac{{{a + off}}}{{\sqrt{{{b}}}}}"),
            (rf"{c}+{a}\sqrt{{{b}}}", rf"{a}\sqrt{{{b}}}+{c + off}"),
            (rf"\frac{{1}}{{{c}+\sqrt{{{b}}}}}", rf"\frac{{{c + off}-\sqrt{{{b}}}}}{{{c * c - b}}}"),
        ]
        if c * c != b
        else [(rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b + off}}}")]
    )
    return gold, candidate, right


def polynomial(pick: Chooser) -> Pair:
    """A product against what it multiplies out to, in one variable or two."""
    a, b, c, d = (pick.choice([-1, 1]) * pick.randrange(2, 40) for _ in range(4))
    right = pick.random() < 0.5
    off = 0 if right else pick.choice([-1, 1])
    x, y = pick.choice([("x", "y"), ("n", "k"), ("a", "b")])
    return (
        *pick.choice(
            [
                (f"({x}{a:+})({x}{b:+})", f"{x}^2{a + b + off:+}{x}{a * b:+}"),
                (f"{a * c}{x}^2{a * d + b * c:+}{x}{y}{b * d + off:+}{y}^2", f"({a}{x}{b:+}{y})({c}{x}{d:+}{y})"),
                (f"({x}{a:+})^3", f"{x}^3{3 * a:+}{x}^2{3 * a * a:+}{x}{a**3 + off:+}"),
            ]
        ),
        right,
    )


def rational(pick: Chooser) -> Pair:
    """Partial fractions against the one over the common denominator."""
    a, b = pick.sample(range(2, 90), 2)
    right = pick.random() < 0.5
    off = 0 if right else pick.choice([-1, 1])
    return (
        *pick.choice(
            [
                (
                    rf"\frac{{1}}{{x-{a}}}+\frac{{1}}{{x+{b}}}",
                    rf"\frac{{2x{b - a + off:+}}}{{(x-{a})(x+{b})}}",
                ),
                (rf"\frac{{x^2-{a * a}}}{{x+{a}}}+{b}", rf"x{b - a + off:+}"),
                (rf"\frac{{{a}x+{b}}}{{x}}", rf"{a}+\frac{{{b + off}}}{{x}}"),
            ]
        ),
        right,
    )


def trigonometric(pick: Chooser) -> Pair:
    """Double angles, a square of one against the other, exact values."""
    a, b = pick.randrange(2, 90), pick.randrange(2, 90)
    right = pick.random() < 0.5
    off = 0 if right else pick.choice([-1, 1])
    return (
        *pick.choice(
            [
                (rf"{b}\sin({2 * a}x)", rf"{2 * b + off}\sin({a}x)\cos({a}x)"),
                (rf"\cos({2 * a}x)+{b}", rf"{b + 1 + off}-2\sin^2({a}x)"),
                (rf"{a}\tan x+{b}", rf"\frac{{{a + off}\sin x}}{{\cos x}}+{b}"),
                (rf"{a}-{b}\cos^2 x", rf"{a - b + off}+{b}\sin^2 x"),
            ]
        ),
        right,
    )


def logarithmic(pick: Chooser) -> Pair:
    """Logarithms of products and powers, and powers of e."""
    a, b, k = pick.randrange(2, 70), pick.randrange(2, 70), pick.randrange(2, 6)
    right = pick.random() < 0.5
    off = 0 if right else 1
    return (
        *pick.choice(
            [
                (rf"\ln {a * b}+{k}", rf"\ln {a}+\ln {b}+{k + off}"),
                (rf"{k}\ln {a}+{b}", rf"\ln({a**k + off})+{b}"),
                (rf"e^{{{k}x}}+{a}e^{{-{b}x}}", rf"\frac{{{a + off}}}{{e^{{{b}x}}}}+e^{{{k}x}}"),
                (rf"{a}\log_{{10}} {b}", rf"\frac{{{a + off}\ln {b}}}{{\ln 10}}"),
            ]
        ),
        right,
    )


def interval(pick: Chooser) -> Pair:
    """An interval or a union of two, wrong in one bracket or one end."""
    a, half, width = pick.randrange(-400, 400), pick.randrange(1, 400, 2), pick.randrange(1, 300)
    b = a + width
    if pick.random() < 0.5:
        pair = pick.choice(
            [
                (rf"[{a},{b}+\frac{{1}}{{2}})", rf"\left[{a}, \frac{{{2 * b + 1}}}{{2}}\right)"),
                (rf"(-\infty,{a}]\cup({b},\infty)", rf"\left(-\infty, {a}\right] \cup \left({b}, \infty\right)"),
                (rf"({a},{(2 * b + 1) / 2:.1f}]", rf"({a}, \frac{{{2 * b + 1}}}{{2}}]"),
            ]
        )
        return *pair, True
    pair = pick.choice(
        [
            (rf"[{a},{b})", rf"[{a},{b}]"),
            (rf"({a},\frac{{{half}}}{{2}}+{b})", rf"({a + 1},\frac{{{half}}}{{2}}+{b})"),
            (rf"(-\infty,{a}]\cup({b},\infty)", rf"(-\infty,{a})\cup({b},\infty)"),
        ]
    )
    return *pair, False


def finite_set(pick: Chooser) -> Pair:
    """Four numbers in another order, or one of them another number."""
    members = pick.sample(range(-500, 500), 4)
    names = [str(n) for n in members[:3]] + [rf"\frac{{{2 * members[3] + 1}}}{{2}}"]
    other = [str(n) for n in members[:3]] + [f"{(2 * members[3] + 1) / 2:.1f}"]
    right = pick.random() < 0.5
    if not right:
        other[pick.randrange(3)] = str(pick.randrange(501, 900))
    pick.shuffle(other)
    return rf"\{{{','.join(names)}\}}", rf"\{{{', '.join(other)}\}}", right


def point(pick: Chooser) -> Pair:
    """A tuple of three, its entries written differently, or two of them swapped."""
    a, b, c = pick.sample(range(-300, 300), 3)
    gold = rf"({a},\frac{{{2 * b + 1}}}{{2}},{c})"
    if pick.random() < 0.5:
        return gold, rf"\left({a}, {(2 * b + 1) / 2:.1f}, {c}\right)", True
    return gold, pick.choice([rf"({c},\frac{{{2 * b + 1}}}{{2}},{a})", rf"({a},\frac{{{2 * b + 3}}}{{2}},{c})"]), False


def matrix(pick: Chooser) -> Pair:
    """Two by two: entries written differently, transposed, or one off by one."""
    a, b, c, d = pick.sample(range(-99, 99), 4)
    gold = rf"\begin{{pmatrix}} {a} & \frac{{{2 * b + 1}}}{{2}} \\ {c} & {d} \end{{pmatrix}}"
    half = f"{(2 * b + 1) / 2:.1f}"
    if pick.random() < 0.5:
        return gold, rf"\begin{{pmatrix}}{a}&{half}\\{c}&{d}\end{{pmatrix}}", True
    rows = pick.choice([f"{a} & {c} \\\\ {half} & {d}", f"{a} & {half} \\\\ {c} & {d + 1}"])
    return gold, rf"\begin{{pmatrix}} {rows} \end{{pmatrix}}", False


def equation(pick: Chooser) -> Pair:
    """A line times a number, its terms moved, or one coefficient off by one."""
    a, b, c, k = pick.randrange(2, 60), pick.randrange(2, 60), pick.randrange(1, 90), pick.randrange(2, 7)
    right = pick.random() < 0.5
    off = 0 if right else pick.choice([-1, 1])
    return (
        *pick.choice(
            [
                (f"{a}x+{b}y={c}", f"{k * a}x+{k * b}y={k * c + off}"),
                (f"{a}x+{b}y={c}", f"{a}x+{b}y-{c + off}=0" if c + off else f"{a}x+{b}y=0"),
                (f"y={a}x+{c}", f"{a}x-y{c + off:+}=0" if c + off else f"{a}x-y=0"),
            ]
        ),
        right,
    )


def complex_number(pick: Chooser) -> Pair:
    """a + bi in another order or over a common denominator, conjugated, or with the parts swapped."""
    a, b = pick.sample(range(2, 900), 2)
    gold, right = rf"{a}+\frac{{{b}}}{{7}}i", pick.random() < 0.5
    if right:
        return (
            gold,
            pick.choice([rf"\frac{{{b}}}{{7}}i+{a}", rf"\frac{{{7 * a}+{b}i}}{{7}}", rf"{a}+\frac{{{b}i}}{{7}}"]),
            True,
        )
    return (
        gold,
        pick.choice([rf"{a}-\frac{{{b}}}{{7}}i", rf"\frac{{{b}}}{{7}}+{a}i", rf"\frac{{{7 * a + 1}+{b}i}}{{7}}"]),
        False,
    )


SYMBOLIC: tuple[Callable[[Chooser], Pair], ...] = (
    surd,
    polynomial,
    rational,
    trigonometric,
    logarithmic,
    interval,
    finite_set,
    point,
    matrix,
    equation,
    complex_number,
)


def rounds_of_pairs(count: int, rounds: int) -> list[dict[str, list[Pair]]]:
    """For each round: kind → its pairs, half of them right; no pair and no symbolic gold twice in all rounds."""
    pick, seen = random.Random(20), set[str]()
    made = []
    for _ in range(rounds):
        shares: dict[Callable[[Chooser], Pair], int] = {integer: round(0.55 * count), fraction: round(0.15 * count)}
        symbolic = count - sum(shares.values())
        shares |= {make: (symbolic + n) // len(SYMBOLIC) for n, make in enumerate(SYMBOLIC)}
        made.append({make.__name__: _unseen(make, share, pick, seen) for make, share in shares.items()})
    return made


def _unseen(make: Callable[[Chooser], Pair], count: int, pick: Chooser, seen: set[str]) -> list[Pair]:
    """`count` pairs, half of them right, whose gold was never used before."""
    wanted = {True: count - count // 2, False: count // 2}
    pairs = []
    while any(wanted.values()):
        pair = make(pick)
        if wanted[pair[2]] and pair[0] not in seen:
            seen.add(pair[0])
            wanted[pair[2]] -= 1
            pairs.append(pair)
    return pairs


def pathological() -> dict[str, tuple[str, str]]:
    """The dozen: name → gold, candidate. None is right; most are what a model writes when it goes wrong."""
    variables = "".join(f"(x_{{{i}}}+1)" for i in range(200))
    return {
        "tower of fives": ("1", "5^(" * 40 + "5" + ")" * 40),
        "9^9^9^9": ("9", "9^{9^{9^9}}"),
        "sum of 1e7 terms": ("1", r"\sum_{k=1}^{10000000} \frac{1}{k^2}"),
        "(x+y+z+w)^200": ("x+y+z+w", "(x+y+z+w)^{200}"),
        "99999999!": ("1", "99999999!"),
        "1e5 nested braces": ("1", "{" * 100_000 + "2" + "}" * 100_000),
        "1e6 digits": ("1", "1" * 1_000_000),
        "surd, sin(x)": (r"1+7\sqrt{11}", r"\sin(x)"),
        "200-variable product": ("x_{1}+1", variables),
        "200 nested fractions": ("1", r"\frac{1}{1+" * 200 + "1" + "}" * 200),
        "100 KB of words": ("1", "so it is, and then 3 + " * 4_400),
        "1000 nested roots": ("2", r"\sqrt{" * 1_000 + "3" + "}" * 1_000),
    }


def chains(count: int, first: int) -> list[str]:
    """Whole responses of about 30 KB with 500 formulas, and the answer in a box at the end."""
    return [
        "<think>"
        + "".join(
            rf"So $x_{{{i}}} + {i * n} = \frac{{{i}}}{{{n}}}$, hence \(y > {i}\). Then we go on. " for i in range(250)
        )
        + "Let me check this once more, slowly, since it matters. " * 190
        + rf"</think> The answer is $\boxed{{{n}}}$."
        for n in range(first, first + count)
    ]


def ours(gold: str, candidate: str) -> bool | None:
    """Our verdict."""
    return equal(gold, candidate, AS_ANSWERS)[0]


def theirs(gold: str, candidate: str) -> bool | None:
    """Math-verify's verdict with its default settings, as a script uses it; an exception is no verdict."""
    parse, verify = peer()
    try:
        return bool(verify(parse(f"${gold}$"), parse(f"${candidate}$")))
    except Exception:  # noqa: BLE001 - whatever it raises, there is no verdict
        return None


@functools.cache
def peer() -> tuple[Callable[..., list[object]], Callable[..., bool]]:
    """Math-verify's two functions; raises ImportError where it is not installed."""
    import logging

    from math_verify import parse, verify  # type: ignore[import-untyped,unused-ignore]

    logging.disable(logging.WARNING)  # it logs each time-out with a traceback
    return parse, verify


def speed(rounds: Sequence[dict[str, list[Pair]]], judges: dict[str, Judge]) -> None:
    """Verdicts per second of processor time, kind by kind; each kind is judged by both before the next is."""
    seconds: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in rounds[0]} for name in judges}
    for number, kinds in enumerate(rounds):
        for kind, pairs in kinds.items():
            for name in sorted(judges, reverse=number % 2 == 1):
                judge, started = judges[name], time.process_time()
                for gold, candidate, _ in pairs:
                    judge(gold, candidate)
                seconds[name][kind].append((time.process_time() - started) / len(pairs))
    print(f"\nverdicts/s/core, median of {len(rounds)} rounds" + "".join(f"{name:>14}" for name in judges) + "   ratio")
    counts = {kind: len(pairs) for kind, pairs in rounds[0].items()}
    everything = list(counts)
    groups = [*((kind, [kind]) for kind in everything), ("symbolic", everything[2:]), ("all", everything)]
    for label, group in groups:
        rates = {}
        for name in judges:
            spent = [sum(seconds[name][kind][i] * counts[kind] for kind in group) for i in range(len(rounds))]
            rates[name] = sum(counts[kind] for kind in group) / statistics.median(spent)
        print(f"  {label:32}" + "".join(f"{rate:14,.0f}" for rate in rates.values()) + ratio(rates))


def ratio(rates: dict[str, float]) -> str:
    """Ours over theirs; empty where there is no peer."""
    return f"{rates['ours'] / rates['theirs']:7.1f}x" if len(rates) == 2 else ""


def agreement(kinds: dict[str, list[Pair]], judges: dict[str, Judge], shown: int) -> None:
    """Right and wrong verdicts of each, the slowest one, and the first few mistakes."""
    pairs = [pair for found in kinds.values() for pair in found]
    for name, judge in judges.items():
        paid: list[tuple[str, str]] = []
        withheld: list[tuple[str, str]] = []
        open_: list[tuple[str, str]] = []
        slowest = (0.0, ("", ""))
        for gold, candidate, right in pairs:
            started = time.process_time()
            said = judge(gold, candidate)
            slowest = max(slowest, (time.process_time() - started, (gold, candidate)))
            if said is None:
                open_.append((gold, candidate))
            elif said is not right:
                (paid if said else withheld).append((gold, candidate))
        good = len(pairs) - len(paid) - len(withheld) - len(open_)
        print(
            f"  {name:7} {good / len(pairs):7.2%} of {len(pairs):,}: {len(paid)} false positives, "
            f"{len(withheld)} false negatives, {len(open_)} unjudged; "
            f"slowest {slowest[0] * 1e3:,.1f} ms: {slowest[1][0]} | {slowest[1][1]}"
        )
        for what, found in (("false positive", paid), ("false negative", withheld), ("unjudged", open_)):
            for gold, candidate in found[:shown]:
                print(f"          {what}: {gold} | {candidate}")


def labelled() -> list[Pair]:
    """Answers that other projects labelled, without those whose label is a matter of policy; none where not here."""
    if not DEV.exists():
        return []
    rows = [json.loads(line) for line in DEV.read_text(encoding="utf-8").splitlines()]
    chosen = [row for row in rows if row["kind"] == "answer" and "policy" not in row]
    return [(row["gold"], row["candidate"], row["equivalent"]) for row in chosen]


def ours_of_text(gold: str, candidate: str) -> bool | None:
    """Our verdict on an answer that may come with words around it."""
    return equal(gold, answer_in(candidate).answer, AS_ANSWERS)[0]


def theirs_of_text(gold: str, candidate: str) -> bool | None:
    """Math-verify's verdict on answers that may bring their own delimiters."""
    parse, verify = peer()
    sides = [text if "$" in text or r"\boxed" in text else f"${text}$" for text in (gold, candidate)]
    try:
        return bool(verify(parse(sides[0]), parse(sides[1])))
    except Exception:  # noqa: BLE001 - no verdict
        return None


def worst_cases(with_peer: bool, killed_after: float) -> None:
    """Wall time and outcome of each pathological pair, and the processes that are left when the Pool is closed."""
    print(f"\n{'pathological pairs':24}{'ours':>30}" + (f"{'theirs, limit 5 s':>36}" if with_peer else ""))
    worst, before = 0.0, children()
    with Pool(workers=1) as pool:
        pool.verdicts([Rollout.of("warm", r"\boxed{x+x}", "bench")], {"warm": "2x"})
        for case, (name, (gold, candidate)) in enumerate(pathological().items()):
            started = time.perf_counter()
            asked = [Rollout.of(name, rf"\boxed{{{candidate}}}", "bench")]
            verdict = pool.verdicts(asked, {name: gold})[0]
            spent = time.perf_counter() - started
            worst = max(worst, spent)
            line = f"  {name:22}{spent * 1e3:10,.1f} ms  {verdict.right!s:5} {verdict.reason:16}"
            print(line + (their_worst_case(case, killed_after) if with_peer else ""), flush=True)
        both = [(f"{name} {side}", *pair) for side in "ab" for name, pair in pathological().items()]
        asking = threading.Thread(target=lambda: backwards(pool, both))
        asking.start()
        asking.join()
    time.sleep(0.2)
    left = len(children() - before)
    print(f"  slowest of ours {worst * 1e3:,.1f} ms; processes left, after 24 more from a thread: {left}")


def backwards(pool: Pool, cases: Sequence[tuple[str, str, str]]) -> None:
    """The pathological candidates as gold answers too, a letter apart so that none is known already."""
    asked = [Rollout.of(name, rf"\boxed{{{gold}}}", "bench") for name, gold, _ in cases]
    pool.verdicts(asked, {name: f"{candidate}+{name[-1]}" for name, _, candidate in cases})


def their_worst_case(case: int, killed_after: float) -> str:
    """Outcome and seconds of one pathological pair in a process of its own, which is killed when it will not end."""
    command = [sys.executable, __file__, "--case", str(case)]
    started = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=killed_after)
    except subprocess.TimeoutExpired:
        return f"{(time.perf_counter() - started) * 1e3:12,.0f} ms  killed: it hears no signal"
    said = done.stdout.split()
    return f"{float(said[0]) * 1e3:12,.1f} ms  {said[1]}" if said else f"   died with status {done.returncode}"


def one_case(case: int) -> None:
    """What `their_worst_case` runs: seconds and verdict of one pair, after a warm-up that is not timed."""
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    gold, candidate = list(pathological().values())[case]
    theirs("x+1", r"\frac{1}{2}")
    started = time.perf_counter()
    said = theirs(gold, candidate)
    print(time.perf_counter() - started, said)


def children() -> set[int]:
    """Processes below this one, dead ones that nobody waited for included. Linux only; empty elsewhere."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, fresh = set[int](), {os.getpid()}
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh}
        found |= fresh
    return found


def extraction(rounds: int, count: int, with_peer: bool) -> None:
    """Whole chains read: ours finds the answer's text, theirs finds it and parses the integer that it is."""
    readers: dict[str, Callable[[str], object]] = {"ours": lambda text: extract(text).answer}
    if with_peer:
        readers["theirs"] = lambda text: str(peer()[0](text)[0])
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds):
        texts = chains(count, 1_000 + number * count)
        for name, reader in readers.items():
            started = time.process_time()
            found = [reader(text) for text in texts]
            rates[name].append(count / (time.process_time() - started))
            assert found == [str(n) for n in range(1_000 + number * count, 1_000 + (number + 1) * count)], name
    size = len(texts[0]) / 1024
    medians = {name: statistics.median(found) for name, found in rates.items()}
    told = ", ".join(f"{name} {rate:,.0f} texts/s/core" for name, rate in medians.items())
    print(f"\nextraction from chains of {size:.0f} KB with 500 formulas: {told}{ratio(medians)}")


def scaling(rounds: int, count: int) -> None:
    """The same symbolic pairs through a new Pool of one worker and one of two, wall time; the median of ratios.

    Once as bare pairs, which is the work that is spread, and once as responses, whose answers our own process reads.
    """
    for title in ("pairs", "responses"):
        rates: dict[int, list[float]] = {1: [], 2: []}
        for number, batch in enumerate(rounds_of_pairs(round(count / 0.30), rounds)):
            pairs = [pair for kind, found in batch.items() if kind not in ("integer", "fraction") for pair in found]
            random.Random(number).shuffle(pairs)
            asked = [Rollout.of(f"p{i}", rf"\boxed{{{pair[1]}}}", "bench") for i, pair in enumerate(pairs)]
            golds = {f"p{i}": pair[0] for i, pair in enumerate(pairs)}
            for workers in ((1, 2), (2, 1))[number % 2]:
                with Pool(workers=workers) as pool:
                    pool.timed((f"x+y+{i}", f"y+x+{i}") for i in range(200))  # all workers are there now
                    started = time.perf_counter()
                    if title == "pairs":
                        pool.timed((gold, candidate) for gold, candidate, _ in pairs)
                    else:
                        pool.verdicts(asked, golds)
                    rates[workers].append(len(asked) / (time.perf_counter() - started))
        medians = [statistics.median(rates[workers]) for workers in (1, 2)]
        ratios = sorted(two / one for one, two in zip(rates[1], rates[2], strict=True))
        print(
            f"\nPool, {len(asked):,} symbolic {title}: 1 worker {medians[0]:,.0f}/s, 2 workers {medians[1]:,.0f}/s, "
            f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f}) on {os.cpu_count()} cores"
        )


def memory(name: str, count: int) -> None:
    """What `peak` runs: judge one round of pairs, then say the most memory this program ever held, in MiB."""
    judge = {"ours": ours, "theirs": theirs}[name]
    for pairs in rounds_of_pairs(count, 1)[0].values():
        for gold, candidate, _ in pairs:
            judge(gold, candidate)
    # getrusage would count what the process held before it became this program: a fork of ours.
    print(int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024)


def peak(name: str, count: int) -> float:
    """Peak resident memory in MiB of a fresh process that judges one round."""
    command = [sys.executable, __file__, "--memory", name, "--pairs", str(count)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Agreement, speed, worst cases, extraction, scaling, memory."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--pairs", type=int, default=2_000)
    words.add_argument("--quick", action="store_true", help="two rounds of 400 pairs; theirs is killed after 8 seconds")
    words.add_argument("--show", type=int, default=3, help="how many mistakes of each sort to show")
    words.add_argument("--case", type=int, help=argparse.SUPPRESS)
    words.add_argument("--memory", help=argparse.SUPPRESS)
    args = words.parse_args()
    if args.case is not None:
        return one_case(args.case)
    if args.memory:
        return memory(args.memory, args.pairs)
    rounds, count = (2, 400) if args.quick else (args.rounds, args.pairs)
    judges: dict[str, Judge] = {"ours": ours}
    try:
        peer()
        judges["theirs"] = theirs
    except ImportError:
        print("math-verify is not installed here: ours alone. `pip install 'math-verify[antlr4_13_2]==0.9.0'` adds it.")
    print(f"{verifier()}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for judge in judges.values():
        judge("x+1", r"\frac{1}{2}")  # imports and grammars are not part of a verdict
    first, *timed = rounds_of_pairs(count, rounds + 1)
    print("\nagreement with the labels made here")
    agreement(first, judges, args.show)
    if found := labelled():
        print("agreement with the answers labelled by other projects")
        of_text: dict[str, Judge] = {"ours": ours_of_text, "theirs": theirs_of_text}
        agreement({"": found}, {name: of_text[name] for name in judges}, args.show)
    speed(timed, judges)
    worst_cases("theirs" in judges, 8.0 if args.quick else KILLED_AFTER)
    extraction(rounds, 10 if args.quick else 40, "theirs" in judges)
    scaling(rounds, 200 if args.quick else 1_500)
    told = ", ".join(f"{name} {peak(name, count):,.0f} MiB" for name in judges)
    print(f"\npeak memory of a process that judges {count:,} pairs: {told}")


if __name__ == "__main__":
    main()
