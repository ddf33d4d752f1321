"""Running a recipe: what is done is skipped, what is half done goes on, what changed is done again.

A task's fingerprint covers what it reads of the recipe; beside it stands, by content, what the task starts from. A
folder with another fingerprint was made by an older recipe, one with other inputs from other data: it moves to
`superseded/`, where it can be looked at, compared, and found again when the recipe or the data goes back. A change
goes no further than its effect: where a task made again comes to the same content, what was made from it stands.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from algorist import recipe as recipes
from algorist import store
from algorist.errors import RunError, explain_full_disk
from algorist.recipe import Recipe
from algorist.records import CARD, content_id
from algorist.task import SUPERSEDED, Context, Task, aside

FORMAT = 5  # raised when a run folder of an older version cannot be gone on with
UNREAD = frozenset(  # keys that no result depends on
    ("save_every", "concurrency", "timeout", "patience", "price_in", "price_out", "key_env", "health")
)
SERVERS = ("teacher", "judge", "labels")  # sections that name one
_MARK = "task.json"


def fingerprint(recipe: Recipe, task: Task) -> str:
    """What a task reads of the recipe, hashed: a folder with another one must be made again."""
    resolved = recipe.resolved()
    return f"{FORMAT}-{content_id(task.name, {name: _read(resolved, name) for name in task.reads})}"


def _read(resolved: Any, name: str) -> Any:
    """What a task reads of the resolved recipe: a section or a single key, without the keys that change nothing."""
    for part in name.split("."):
        resolved = resolved[part]
    if name == "data.sources":  # their order decides which of two repeats is kept
        return list(resolved.items())
    if not isinstance(resolved, dict) or "." in name:
        return resolved
    kept = {key: value for key, value in resolved.items() if key not in UNREAD}
    if name in SERVERS:  # a server may move; and where there is none, what it would be told changes nothing
        kept = {**kept, "url": _scheme(kept["url"])} if kept["url"] else {}
    return kept


def _scheme(url: Any) -> str:
    """What matters of an address: whether it is a server on a network or the scripted one."""
    first = url if isinstance(url, str) else url[0]
    return str(first.partition("://")[0].removesuffix("s"))


def _inputs(root: Path, task: Task) -> dict[str, str]:
    """What a task starts from, by content: files it reads, and what the tasks before it made; empty if not there."""
    files = {str(path): _hash(path) for path in task.files}
    return files | {need: _made(root / need) for need in task.needs}


def _hash(path: Path) -> str:
    if not path.is_file():
        return ""
    about = path.stat()
    return _hash_of(path, about.st_size, about.st_mtime_ns)


@functools.cache
def _hash_of(path: Path, size: int, changed: int) -> str:
    """The hash of a file, read once as long as it does not change."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _made(folder: Path) -> str:
    """The id of a finished task's checkpoint, or one of the content of its data sets together."""
    if not (folder / _MARK).exists() or not store.read_json(folder / _MARK)["done"]:
        return ""
    if (folder / "checkpoint" / CARD).exists():
        return str(store.read_json(folder / "checkpoint" / CARD)["id"])
    if (folder / store.MANIFEST).exists():  # what stands in folders below it is for people, or on the way to it
        return store.manifest(folder).content
    made = [store.manifest(path.parent) for path in sorted(folder.rglob(store.MANIFEST))]
    return content_id([one.content for one in made])


def run(
    recipe: Recipe, root: Path, todo: Sequence[Task], say: Callable[[str], object] = print, until: str | None = None
) -> bool:
    """Do every task of `todo` that is not done and print what happens through `say`; whether all are done now.

    Args:
        until  stop after this task

    Raises:
        RunError where the folder holds a run of another recipe, or another process works in it.
    """
    if until is not None and until not in [task.name for task in todo]:
        raise RunError(f"--until {until}: there is no such task. Known here: {', '.join(t.name for t in todo)}.")
    root = root.resolve()  # workers may stand in another folder
    with _alone(root):
        _open_folder(recipe, root, todo, say)
        context = Context(recipe, root, say)
        for task in todo:
            mark, wanted, inputs = root / task.name / _MARK, fingerprint(recipe, task), _inputs(root, task)
            if _begin(root, task.name, wanted, inputs, say):
                started = time.monotonic()
                with explain_full_disk(mark):
                    task.make(context)
                store.write_json(mark, {"fingerprint": wanted, "inputs": inputs, "done": True})
                say(f"{task.name}: done in {time.monotonic() - started:.0f} s")
            else:
                say(f"{task.name}: done before, skipped")
            if task.name == until:
                return task is todo[-1]
    return True


def state(recipe: Recipe, root: Path, todo: Sequence[Task]) -> list[tuple[str, str]]:
    """(task, state) of every task, where the state is one of

    "done", "begun", "to do", "made by another recipe", "made by another version", "made from other data", or "waits
    for …": done, and made again only if that task comes to another content.
    """
    found: dict[str, str] = {}
    for task in todo:
        own = _state(root / task.name, fingerprint(recipe, task), _inputs(root, task))
        before = [need for need in task.needs if found.get(need, "done") != "done"]
        found[task.name] = f"waits for {before[0]}" if own == "done" and before else own
    return list(found.items())


def _state(folder: Path, fingerprint: str, inputs: Mapping[str, str]) -> str:
    if not (folder / _MARK).exists():
        return "to do"
    mark = store.read_json(folder / _MARK)
    if mark["fingerprint"].partition("-")[0] != str(FORMAT):
        return "made by another version"
    if mark["fingerprint"] != fingerprint:
        return "made by another recipe"
    if _changed(mark, inputs):
        return "made from other data"
    return "done" if mark["done"] else "begun"


def _changed(mark: Mapping[str, Any], inputs: Mapping[str, str]) -> list[str]:
    """The inputs that are not what the folder with this mark was made from: others, new ones, and those that are gone.

    One that is named and not there right now is no change: moving a file away does not undo what was made of it.
    """
    changed = [name for name, now in inputs.items() if now and now != mark["inputs"].get(name)]
    return changed + [name for name in mark["inputs"] if name not in inputs]


def _begin(root: Path, name: str, fingerprint: str, inputs: Mapping[str, str], say: Callable[[str], object]) -> bool:
    """Whether the task is still to be made; what another recipe or other data made is set aside or comes back."""
    found = _state(root / name, fingerprint, inputs)
    if found.startswith("made"):
        old = {"inputs": {}, **store.read_json(root / name / _MARK)}  # FORMAT 1 had none
        (root / SUPERSEDED).mkdir(exist_ok=True)
        if found == "made from other data":
            changed = ", ".join(_changed(old, inputs))
            say(f"{name}: made again, because {changed} holds other data now; what was there is superseded")
        os.replace(root / name, _aside(root, name, old["fingerprint"], old["inputs"]))
        found = "to do"
    if found == "to do":
        place = _aside(root, name, fingerprint, inputs)
        if place.exists():
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / f".{_MARK}.draft").unlink(missing_ok=True)  # all that a kill before the first mark leaves
            os.replace(place, root / name)
        found = _state(root / name, fingerprint, inputs)
    if found == "to do":
        store.write_json(root / name / _MARK, {"fingerprint": fingerprint, "inputs": inputs, "done": False})
    return found != "done"


def _aside(root: Path, name: str, fingerprint: str, inputs: Mapping[str, str]) -> Path:
    """Where a folder of this fingerprint and these inputs waits until it is wanted again."""
    return root / SUPERSEDED / f"{aside(name)}-{content_id(fingerprint, dict(inputs))}"


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the run folder for this process."""
    try:
        with explain_full_disk(root):
            root.mkdir(parents=True, exist_ok=True)
            lock = open(root / ".lock", "a")  # noqa: SIM115  held for as long as the run
    except OSError as error:
        raise RunError(f"{root}: cannot be a run's folder ({error.strerror}). Name another --out.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{root}: another algorist works in this folder. Wait for it, or name another --out."
            ) from None
        yield


def _open_folder(recipe: Recipe, root: Path, todo: Sequence[Task], say: Callable[[str], object]) -> None:
    """Refuse a folder of another recipe, say what changed in this one, and write the resolved recipe."""
    path = root / "recipe.toml"
    if path.exists():
        old = tomllib.loads(path.read_text(encoding="utf-8"))
        if old["name"] != recipe.name:
            raise RunError(
                f'{root}: holds a run of the recipe "{old["name"]}", not of "{recipe.name}". '
                "Name another folder with --out, or delete this one."
            )
        for line in recipes.differences(old, recipe.resolved()):
            if " not set → " not in line:  # a key that is new, or that only other verbs read
                say(f"changed: {line}")
        found = state(recipe, root, todo)
        for why in ("made by another recipe", "made by another version"):
            if again := [name for name, one in found if one == why]:
                what = f"{', '.join(again)}, {why}, and what comes to another content by it"
                say(f"made again: {what}; what was there moves to {root / SUPERSEDED}")
    elif any(entry.name not in (".lock", ".recipe.toml.draft") for entry in root.iterdir()):
        raise RunError(
            f"{root}: is not empty and holds no recipe.toml, so it is no run. Name another folder with --out."
        )
    store.write_text(path, recipe.dumps())
