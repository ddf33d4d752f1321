"""Steps over shards: any engine makes the same shards, finished ones stay, older ones serve again."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from algorist import store
from algorist.data import shards
from algorist.data.shards import Engine, Job
from algorist.errors import RecordError, RunError
from algorist.records import Problem

HERE = Engine(workers=1)


def double(path: Path, index: int, word: str, made_from: str) -> int:
    """A step: problems that say a word `index` times."""
    found = [Problem.of(f"{word} {place}", str(place)) for place in range(index)]
    store.write_shard(path, index, Problem, found, dropped={"odd": index % 2}, made_from=made_from)
    return index


def refuse(path: Path, index: int, word: str, made_from: str) -> None:
    raise RecordError(f"{path}: {word} cannot be read. Mend it.")


def vanish(path: Path, index: int, word: str, made_from: str) -> None:
    os._exit(9)


def jobs(folder: Path, count: int, word: str = "say") -> list[Job]:
    found = []
    for index in range(count):
        source = shards.made_from(double, word, index)
        found.append(Job(folder / f"{index:05d}.parquet", (folder, index, word, source), source))
    return found


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_processes_make_the_same_shards(tmp_path: Path) -> None:
    for name, engine in (("one", HERE), ("two", Engine(workers=2))):
        assert shards.build("say", double, jobs(tmp_path / name, 5), engine) == 0
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert store.finish(tmp_path / "two", Problem).dropped == {"odd": 2}


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_makes_the_same_shards_and_its_errors_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # its workers import this file
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    shards.build("say", double, jobs(tmp_path / "one", 5), HERE)
    shards.build("say", double, jobs(tmp_path / "ray", 5), Engine("ray", 2))
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "ray")
    with pytest.raises(RecordError, match="say cannot be read. Mend it."):
        shards.build("say", refuse, jobs(tmp_path / "no", 2), Engine("ray", 1))


def test_a_finished_shard_stays_and_a_changed_one_is_made_again(tmp_path: Path) -> None:
    shards.build("say", double, jobs(tmp_path, 4), HERE)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    (tmp_path / "00001.parquet").write_bytes(b"half")
    shards.build("say", double, jobs(tmp_path, 3), HERE)  # one shard fewer: the fourth is of a longer input
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == [f"0000{i}.parquet" for i in range(3)]
    same = [path.name for path, time in times.items() if path.exists() and path.stat().st_mtime_ns == time]
    assert sorted(same) == ["00000.parquet", "00002.parquet"]
    shards.build("tell", double, jobs(tmp_path, 3, "tell"), HERE)
    assert store.read_shard(tmp_path / "00002.parquet", Problem)[1].statement == "tell 1"


def test_shards_of_an_older_folder_serve_again(tmp_path: Path) -> None:
    shards.build("say", double, jobs(tmp_path / "old", 4), HERE)
    wanted = [job for job in jobs(tmp_path / "new", 4) if job.args[1] != 1]
    moved = [
        Job(tmp_path / "new" / f"{place:05d}.parquet", job.args, job.made_from) for place, job in enumerate(wanted)
    ]
    assert shards.build("say", refuse, moved, HERE, older=[tmp_path / "old"]) == 3
    old = bytes_of(tmp_path / "old")
    assert list(bytes_of(tmp_path / "new").values()) != [] and set(bytes_of(tmp_path / "new").values()) <= set(
        old.values()
    )
    assert sorted(old) == [f"0000{i}.parquet" for i in range(4)]


def test_an_error_of_a_step_is_raised_as_it_is(tmp_path: Path) -> None:
    for engine in (HERE, Engine(workers=2)):
        with pytest.raises(RecordError, match="say cannot be read. Mend it."):
            shards.build("say", refuse, jobs(tmp_path, 3), engine)


ORPHAN = """
import os, sys, time
from pathlib import Path
from algorist.data.shards import Engine, over
def nap(seconds): time.sleep(seconds)
if __name__ == "__main__":
    for _ in over(os.getpid, [()] * 2, Engine(workers=2)): pass
    from algorist.data import shards
    print(*shards._executor(2)._processes, flush=True)
    time.sleep(60)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.kill()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/cmdline").exists() and b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
              for pid in workers):  # fmt: skip
        assert time.monotonic() < deadline, "the workers live on"
        time.sleep(0.1)


def test_a_killed_worker_is_said_and_what_is_finished_stays(tmp_path: Path) -> None:
    shards.build("say", double, jobs(tmp_path, 2), HERE)
    with pytest.raises(RunError, match="A worker process was killed, most likely for lack of memory"):
        shards.build("say", vanish, jobs(tmp_path, 5), Engine(workers=2))
    assert len(bytes_of(tmp_path)) == 2
