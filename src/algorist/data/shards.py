"""Where data steps run: one function over many shards, by local processes or by Ray, resumed and reused by shard.

A step turns shard k of its inputs into shard k of its output. What a shard was made from is hashed into its footer: a
shard that is there and was made from the same is not made again, and one that an earlier run of the step left in
`superseded/` is taken over, so that a source removed from a recipe costs only what depended on it. Which engine runs
the shards changes nothing in them.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, Literal

from algorist import store
from algorist.errors import AlgoristError, RecipeError, RecordError, RunError
from algorist.journal import progress
from algorist.records import content_id

SHARDS_EACH = 4  # that a process must have to do before it is started unasked: starting one costs seconds
STEPS = 1  # raised when a step comes to mean something else: shards of older runs then serve no more


@dataclass(frozen=True)
class Engine:
    """What runs the shards."""

    kind: Literal["processes", "ray"] = "processes"
    workers: int = 0  # at the same time; 0: as many as there are cores


@dataclass(frozen=True)
class Job:
    """One shard to be made: `function(*args)` writes it with `store.write_shard(..., made_from=made_from)`."""

    path: Path  # of the shard
    args: tuple[Any, ...]
    made_from: str  # a hash of everything that the shard depends on
    beside: tuple[str, ...] = ()  # folders below the shard's that get a shard of the same name from the same call

    def paths(self, shard: Path | None = None) -> list[Path]:
        """All files of the job, the shard itself last; or those that stand so around another shard."""
        shard = shard or self.path
        return [*(shard.parent / name / shard.name for name in self.beside), shard]


def made_from(function: Callable[..., object], *parts: object) -> str:
    """The hash of a job: the step's name, its version and settings, and the content of the shards that it reads."""
    return content_id(STEPS, function.__module__, function.__qualname__, *parts)


def build(
    title: str, function: Callable[..., object], jobs: Sequence[Job], engine: Engine, older: Iterable[Path] = ()
) -> int:
    """Make every shard that is not there yet; returns how many were taken over from `older` folders.

    Shards of the folder that no job names, left by a longer input, are deleted.

    Args:
        title     shown with the progress
        function  at the top of a module; called as function(*job.args) in any process
        jobs      all of one folder
        older     folders of earlier runs of the same step, whose shards may serve again

    Raises what `function` raises, RunError where a process was killed, RecipeError where Ray is asked for and missing.
    """
    wanted = {path for job in jobs for path in job.paths()}
    folders = {path.parent for path in wanted}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for path in set(folder.glob("[0-9]*.parquet")) - wanted:
            path.unlink()
    known: dict[str, Path] = {}
    for folder in older:
        for path in folder.glob("[0-9]*.parquet"):
            known.setdefault(_made_from(path), path)
    missing, reused = [], 0
    for job in jobs:
        if _made(job.paths(), job.made_from):
            continue
        if job.made_from in known and _made(job.paths(known[job.made_from]), job.made_from):
            for old, new in zip(job.paths(known[job.made_from]), job.paths(), strict=True):
                with store.replacing(new) as draft:
                    _share(old, draft)
            reused += 1
        else:
            missing.append(job)
    with progress(title, len(jobs), quiet=len(jobs) < 2) as advance:
        advance(len(jobs) - len(missing))
        for _ in over(function, [job.args for job in missing], engine):
            advance(1)
    return reused


def over(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], engine: Engine
) -> Iterator[tuple[int, Any]]:
    """(place, function(*arguments[place])) of every call, as they are done. Raises what `build` raises."""
    workers = min(engine.workers or min(os.cpu_count() or 1, -(-len(arguments) // SHARDS_EACH)), len(arguments))
    if engine.kind == "ray":
        yield from _by_ray(function, arguments, engine.workers)
    elif workers <= 1:  # a process of its own would cost more than it brings
        yield from ((place, function(*args)) for place, args in enumerate(arguments))
    else:
        yield from _by_processes(function, arguments, workers)


def _made(paths: Iterable[Path], made_from: str) -> bool:
    return all(path.exists() and _made_from(path) == made_from for path in paths)


def _share(old: Path, new: Path) -> None:
    """The same file under a second name; a copy where the disk knows no second names. Shards are never written to."""
    new.unlink(missing_ok=True)
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


def _made_from(path: Path) -> str:
    try:
        return store.facts(path).made_from
    except RecordError:  # a shard that cannot be read is made again
        return ""


def _by_processes(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[tuple[int, Any]]:
    pool = _executor(workers)
    waiting = {pool.submit(function, *args): place for place, args in enumerate(arguments)}
    try:
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    except BrokenProcessPool:
        _executor.cache_clear()
        raise RunError(
            "A worker process was killed, most likely for lack of memory. Set [data] workers lower and run the same "
            "command again; finished shards are kept."
        ) from None
    finally:
        for one in waiting:
            one.cancel()
        wait(waiting)  # those that run still write their shard; whoever comes next must find it whole


@functools.cache
def _executor(workers: int) -> ProcessPoolExecutor:
    """Processes that serve one step after another. Not forked: the parent may hold threads of torch or Arrow, whose
    locks a fork would copy as they stand."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None, "this runs in worker processes"
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _by_ray(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[tuple[int, Any]]:
    """Ray's cluster where RAY_ADDRESS names one, else a local one that ends with us; shards lie on shared disks."""
    ray = _ray(workers)
    remote = ray.remote(num_cpus=1, max_retries=2)(function)
    waiting = {remote.remote(*args): place for place, args in enumerate(arguments)}
    try:
        while waiting:
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            yield waiting.pop(done), _result(ray, done)
    finally:  # after an error nothing may go on to write beside the next attempt
        for one in waiting:
            ray.cancel(one)
        if waiting:
            ray.wait(list(waiting), num_returns=len(waiting))


@functools.cache
def _ray(workers: int) -> Any:
    """Ray, started once for all steps; it ends with us."""
    try:
        import ray
    except ImportError:
        raise RecipeError(
            "[data] engine = \"ray\": Ray is not installed. Install the extra with pip install '.[ray]'."
        ) from None
    if not ray.is_initialized():
        own = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers or None, "include_dashboard": False}
        ray.init(log_to_driver=False, configure_logging=False, **own)
    return ray


def _result(ray: Any, done: Any) -> Any:
    """A task's value; what it raised is raised here as itself, so that a mendable error stays one line."""
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AlgoristError):
            raise error.cause from None
        raise
