"""The simulator of RL schedules: nothing is lost, limits have closed forms, and no length or queue stops it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(scope="module")
def sim() -> Iterator[SimpleNamespace]:
    """The names of the three files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        import async_run
        import async_sim
        import async_work

        yield SimpleNamespace(**{**vars(async_work), **vars(async_run), **vars(async_sim)})


@dataclass(frozen=True)
class Told:
    """Work whose lengths are told, for ever again."""

    groups: int
    group: int
    said: tuple[int, ...]
    prompt: int = 10

    def lengths(self, seed: int, group: int) -> np.ndarray:
        at = group * self.group
        return np.array([self.said[(at + one) % len(self.said)] for one in range(self.group)])


def work(sim: SimpleNamespace, **changes: float):
    return replace(sim.Work(16, 4, 120.0, 80.0, 800, 10), **changes)


def rates(sim: SimpleNamespace, **changes: float):
    return replace(sim.Rates(0.01, 1e-6, 0.004, hand_over=0.5, prefill=1e-4, slots=8), **changes)


def schedules(sim: SimpleNamespace):
    return (*sim.SCHEDULES, replace(sim.PARTIAL, ahead=math.inf, queue=16), replace(sim.STALE, ahead=3.0, queue=1))


NAMES = ("sync", "cut", "carried", "one off", "streaming", "stale", "partial", "infinite", "narrow")


@pytest.mark.parametrize("place", range(len(NAMES)), ids=NAMES)
def test_every_token_is_trained_held_or_wasted(sim, place):
    schedule = schedules(sim)[place]
    split = (4, 4) if schedule.colocated else (4, 2)
    found = sim.simulate(work(sim), rates(sim), schedule, split)
    assert found.generated == pytest.approx(found.trained + found.wasted + found.held, rel=1e-9)
    assert found.trained > 0 and found.held >= -1e-6
    assert (found.wasted > 0) == (schedule.cut == "discard")
    assert 0 <= found.sampler_idle < 1 and 0 <= found.trainer_idle < 1
    assert found.most <= (1 + schedule.ahead) * 16


@pytest.mark.parametrize("place", range(len(NAMES)), ids=NAMES)
def test_a_seed_decides_everything(sim, place):
    schedule = schedules(sim)[place]
    one, again, other = (sim.simulate(work(sim), rates(sim), schedule, (4, 4), seed=seed) for seed in (3, 3, 4))
    assert one == again and one.seconds != other.seconds


def spent(length: int, running: int, r) -> float:
    """Seconds in which responses of one length are decoded together, prompt 10."""
    return length * r.fixed + r.kv * running * (10 * length + length * length / 2)


def test_constant_lengths_have_closed_forms(sim):
    constant, r = work(sim, mean=100.0, median=100.0), rates(sim, slots=16)
    generation, training = spent(100, 16, r), 16 * 4 * 100 * r.train / 4
    found = sim.simulate(constant, r, sim.SYNC, (4, 4))
    assert found.seconds == pytest.approx(generation + training + 0.5)
    assert found.trainer_idle == pytest.approx(1 - training / found.seconds)
    assert found.sampler_idle == pytest.approx(1 - generation / found.seconds)
    streamed = sim.simulate(constant, r, sim.STREAM, (4, 4))  # all end at once: nothing to stream
    assert streamed.seconds == pytest.approx(found.seconds)
    for trainers in (1, 4, 64):
        overlapped = sim.simulate(constant, r, sim.ONE_OFF, (4, trainers))
        assert overlapped.seconds == pytest.approx(max(generation, 4 * training / trainers + 0.5))
        assert overlapped.oldest == 1
    waves = sim.simulate(constant, replace(r, slots=4), sim.SYNC, (4, 4))
    assert waves.seconds == pytest.approx(4 * spent(100, 4, r) + training + 0.5)


@pytest.mark.parametrize("trainers", [1, 2, 4, 8, 32])
def test_without_a_limit_the_slower_side_decides(sim, trainers):
    constant, r = work(sim, mean=100.0, median=100.0), rates(sim, slots=4, hand_over=0.0, prefill=0.0)
    endless = replace(sim.PARTIAL, ahead=math.inf, queue=64)
    found = sim.simulate(constant, r, endless, (4, trainers), 12)
    generation, training = 4 * spent(100, 4, r), 16 * 4 * 100 * r.train / trainers
    assert found.seconds == pytest.approx(max(generation, training), rel=0.03)


def test_serial_seconds_are_not_divided(sim):
    r = rates(sim, serial=7.0, train=0.0)
    assert sim.simulate(work(sim), r, sim.SYNC, (4, 4)).seconds == pytest.approx(
        sim.simulate(work(sim), replace(r, serial=0.0), sim.SYNC, (4, 4)).seconds + 7
    )
    assert sim.simulate(work(sim), replace(r, fixed=0.0, kv=0.0), sim.STREAM, (4, 4)).seconds == pytest.approx(7.5)


def test_a_full_queue_holds_the_sampler_back(sim):
    slow, wide = rates(sim, train=0.1), replace(sim.STALE, ahead=3.0)
    assert sim.simulate(work(sim), slow, wide, (4, 1)).most == 64  # all that staleness lets run ahead
    held = sim.simulate(work(sim), slow, replace(wide, queue=1), (4, 1))
    assert held.most < 40  # what the slots hold, a lot, the queue, and what ends after it is full


def test_one_step_off_begins_a_batch_when_the_last_one_has_ended(sim):
    free = rates(sim, train=0.0, hand_over=0.0)
    for slots in (4, 16):
        seconds = [
            sim.Run(work(sim), replace(free, slots=slots), kind, (4, 4)).until(5) for kind in (sim.ONE_OFF, sim.SYNC)
        ]
        assert seconds[0] == pytest.approx(seconds[1])


def test_interrupted_responses_go_on_before_new_ones_begin(sim):
    told, r = Told(4, 2, (1000, *[10] * 99)), sim.Rates(0.01, 0.0, 1e-3, slots=1)
    run = sim.Run(told, r, replace(sim.PARTIAL, ahead=3.0, parts=1), (2, 1))
    run.until(3)  # responses of 10 tokens went by on the other engine
    run.feed()
    assert any(group == 0 for engine in run.engines for _, group, _ in engine.running)
    assert sum(engine.tokens for engine in run.engines) == pytest.approx(2 * run.now / 0.01, rel=0.01)


def test_more_of_a_good_thing_is_not_slower(sim):
    long = work(sim, groups=32, longest=4000)

    def seconds(schedule, gpus=(8, 4), **changes):
        return sim.simulate(long, rates(sim, **changes), schedule, gpus, 8).seconds

    ahead = [seconds(replace(sim.PARTIAL, ahead=limit)) for limit in (0.0, 0.25, 0.5, 1.0, 2.0)]
    assert all(later <= sooner * 1.01 for sooner, later in zip(ahead, ahead[1:], strict=False)) and ahead[-1] < ahead[0]
    assert seconds(sim.PARTIAL, (8, 8)) <= seconds(sim.PARTIAL, (8, 4)) <= seconds(sim.PARTIAL, (8, 2))
    assert seconds(sim.PARTIAL, (16, 4)) <= 1.01 * seconds(sim.PARTIAL, (8, 4)) <= 1.02 * seconds(sim.PARTIAL, (2, 4))
    assert seconds(sim.PARTIAL, fixed=0.01) < seconds(sim.PARTIAL, fixed=0.04)
    assert seconds(sim.OVER_CARRY, (8, 8)) < seconds(sim.SYNC, (8, 8))
    assert seconds(sim.OVER_CUT, (8, 8)) < seconds(sim.SYNC, (8, 8))
    assert seconds(sim.PARTIAL, prefill=0.0, train=1e-4) < seconds(sim.PARTIAL, prefill=0.01, train=1e-4)
    assert seconds(sim.PARTIAL, train=1e-4) < seconds(sim.STALE, train=1e-4)


@given(
    said=st.lists(st.sampled_from((1, 2, 50, 100_000)), min_size=1, max_size=12),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.sampled_from((1, 2, 4))),
    machine=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)),
    limits=st.tuples(st.sampled_from((0.0, 0.1, 0.5, 1.0, 3.0, math.inf)), st.sampled_from((1, 2, 7, math.inf))),
    kind=st.tuples(st.sampled_from(("drain", "carry", "discard")), st.booleans(), st.booleans()),
    times=st.sampled_from(((0.0, 0.0), (1e-3, 0.0), (10.0, 5.0))),
)
def test_nothing_stops_it(sim, said, shape, machine, limits, kind, times):
    lots, group, parts = shape
    sampler, trainer, slots = machine
    cut, colocated, whole = kind
    parts = 1 if colocated else parts
    cut = "drain" if cut == "discard" and not colocated else cut
    schedule = sim.Schedule("any", colocated, limits[0], parts, whole and not colocated, cut, limits[1])
    told = Told(lots * parts, group, tuple(said))
    r = sim.Rates(0.01, 1e-6, times[0], hand_over=times[1], prefill=times[0] / 10, slots=slots)
    found = sim.simulate(told, r, schedule, (sampler, trainer), 3)
    assert found.generated == pytest.approx(found.trained + found.wasted + found.held, rel=1e-6, abs=1e-3)
    assert found.most <= (1 + limits[0]) * told.groups


def test_what_cannot_be_run_is_refused(sim):
    some, r = work(sim), rates(sim)
    for schedule, gpus in (
        (sim.STREAM, (4, 0)),
        (sim.STREAM, (0, 4)),
        (replace(sim.STALE, queue=0), (4, 4)),
        (replace(sim.STALE, ahead=-0.5), (4, 4)),
    ):
        with pytest.raises(ValueError, match="a run needs an engine, a trainer, a queue"):
            sim.simulate(some, r, schedule, gpus)
    for schedule in (replace(sim.STREAM, parts=3), replace(sim.SYNC, parts=2)):
        with pytest.raises(ValueError, match="parts must divide the groups"):
            sim.simulate(some, r, schedule, (4, 4))


@pytest.mark.parametrize(("mean", "median", "longest"), [(120, 80, 800), (1800, 1000, 28_672), (7500, 5500, 27_648)])
def test_lengths_have_the_mean_and_median_asked_for(sim, mean, median, longest):
    some = sim.Work(400, 50, mean, median, longest)
    drawn = np.concatenate([some.lengths(1, group) for group in range(400)])
    assert drawn.mean() == pytest.approx(mean, rel=0.03) and np.median(drawn) == pytest.approx(median, rel=0.03)
    assert drawn.min() >= 1 and drawn.max() <= longest
    with pytest.raises(ValueError, match="no lognormal cut at 100 has median 80 and mean 95"):
        sim.Work(1, 1, 95, 80, 100).lengths(1, 0)


@pytest.mark.parametrize("slots", [4, 16])
def test_calibration_gives_the_generation_asked_for(sim, slots):
    r = sim.calibrated(work(sim), rates(sim, slots=slots), 4, 30.0)
    alone = replace(r, train=0.0, hand_over=0.0)
    at_once = sim.Run(work(sim), alone, sim.SYNC, (4, 4)).until(4) / 4
    in_waves = sim.simulate(work(sim), alone, sim.SYNC, (4, 4), 2).seconds
    assert (at_once if slots == 16 else in_waves) == pytest.approx(30.0, rel=0.01)
    with pytest.raises(ValueError, match="a generation takes at least"):
        sim.calibrated(work(sim), rates(sim, kv=1.0, slots=slots), 4, 30.0)


def test_the_closed_form_of_a_generation_is_that_of_the_events(sim):
    r = rates(sim, slots=16, train=0.0, hand_over=0.0)
    longest, context = sim.at_once(work(sim), r, 4, 4, 5)
    closed = (longest * r.fixed + context * r.kv).max(axis=1)
    assert sim.simulate(work(sim), r, sim.SYNC, (4, 4), 2, 5).seconds == pytest.approx(closed[2:].mean())


def test_a_coarse_search_of_splits_is_near_the_best(sim):
    r = sim.calibrated(work(sim), rates(sim), 32, 20.0)
    for training in (3.0, 20.0, 60.0):
        machine = replace(r, train=training * 32 / work(sim).tokens)
        lines = {line["schedule"]: line for line in sim.recommended(work(sim), machine, 32, 0)}
        assert set(lines) == {schedule.name for schedule in sim.SCHEDULES}
        assert all(0 <= line["coarse_loss"] <= 0.05 for line in lines.values())
        assert max(line["looks"] for line in lines.values()) < 14
        assert list(lines.values())[-1]["discards"] and lines["sync"]["over_sync"] == 1
    assert lines["streaming, stale, partial"]["gpus"][1] > 16  # three quarters of the time is training


def test_a_serial_part_and_a_parallel_one_are_found(sim):
    sizes = tuple(sim.Sync(gpus, 0, 0, 0, 12 + 640 / gpus) for gpus in (8, 16, 64))
    assert sim.amdahl(sizes) == pytest.approx((12, 640))
    assert sim.amdahl(tuple(replace(size, update=640 / size.gpus - 1) for size in sizes))[0] == 0


def test_anchors_are_those_published(sim):
    rows = {(anchor.name, anchor.basis): anchor for anchor in sim.anchors()}
    assert len(rows) == len(sim.anchors())
    assert rows["verl fully async, 128", "synchronous"].published == pytest.approx(2.365, rel=1e-3)
    assert rows["AReaL 1.5B", "split assumed"].published == pytest.approx(2.77, rel=1e-3)
    for anchor in rows.values():
        assert anchor.schedule.colocated or sum(anchor.gpus) == anchor.sync.gpus or anchor.over
        assert anchor.gpus[0] % anchor.rates.gpus == 0 and anchor.work.groups % anchor.schedule.parts == 0


def test_an_anchor_is_a_line(sim):
    small = replace(sim.DAPO, groups=16, group=4)
    line = sim.row(replace(sim.anchors()[0], work=small), 0)
    assert line["bench"] == "cpu.async_sim" and line["lowest"] <= line["predicted"] <= line["highest"]
    assert line["error"] == pytest.approx(line["predicted"] / line["published"] - 1, abs=2e-3)
    assert line["near"] == (abs(line["error"]) <= 0.2)


def test_figures_of_ones_own(sim, monkeypatch, capsys):
    words = "--gpus=4 --groups=8 --group=4 --mean=200 --median=150 --longest=800 --slots=16 --tokens-per-second=500"
    monkeypatch.setattr(sys, "argv", ["async_sim.py", *words.split(), "--training-seconds=6"])
    sim.main()
    out = capsys.readouterr().out
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert [line["schedule"] for line in lines][-1] == "over-issue, cut" and len(lines) == len(sim.SCHEDULES)
    assert all(line["bench"] == "cpu.async_sim" and line["total"] == 4 for line in lines)
    kept = [line["seconds"] for line in lines if not line["discards"]]
    assert kept == sorted(kept)
    assert "throws long responses away" in out
