"""The walls: floors, sizes, names, docstrings, forbidden imports. Checked like any other behaviour."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import algorist

HOUSE = Path(algorist.__file__).parent
FILES = sorted(path for path in HOUSE.rglob("*.py"))
NAMES = [path.relative_to(HOUSE).as_posix() for path in FILES]
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in zip(NAMES, FILES, strict=True)}

# A room imports only from floors below its own.
FLOORS = [
    {"errors", "__init__"},
    {"numerics", "records", "journal"},
    {"store", "recipe", "addresses"},
    {"model", "verify", "toy", "task", "tokens"},
    {"generate", "pipeline"},
    {"data", "evals", "trace", "review", "serving"},
    {"stage"},
    {"stages", "train"},
    {"doctor"},
    {"tasks", "show", "replay"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
TORCH_FREE = ("cli", "records", "recipe", "store", "errors", "task", "pipeline", "trace", "review", "model/chat")
TORCH_FREE_ROOMS = ("data", "verify")
TORCH_FREE_TOO = (
    "addresses",
    "tokens",
    "toy/world",
    "toy/teacher",
    "toy/words",
    "generate/sampling",
    "generate/ids",
    "generate/server",
    "generate/endpoints",
    "generate/answers",
    "generate/fleet",
)
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def room(name: str) -> str:
    """ "model/chat.py" → "model", "store.py" → "store"."""
    return name.removesuffix(".py").split("/")[0]


def dotted(name: str) -> str:
    """ "model/chat.py" → "algorist.model.chat"."""
    parts = ("algorist/" + name.removesuffix(".py")).split("/")
    return ".".join(part for part in parts if part != "__init__")


MODULES = {dotted(name): name for name in NAMES}


def imports(name: str) -> Iterator[tuple[str, int]]:
    """(module, line) of every import of a file, lazy ones inside functions too; `from a import b` gives a and a.b."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: a relative import"
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def own(module: str) -> str | None:
    """The file that a module of ours is, None for everybody else's and for names that are no modules."""
    return MODULES.get(module)


def functions(name: str) -> Iterator[FunctionNode]:
    yield from (node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_there_is_a_house() -> None:
    assert len(NAMES) > 40 and "train.py" in NAMES


def test_every_room_has_a_floor() -> None:
    assert {room(name) for name in NAMES} <= set(FLOOR)


def test_rooms_import_only_from_floors_below() -> None:
    wrong = []
    for name in NAMES:
        for module, line in imports(name):
            target = own(module)
            if target is None or room(target) == room(name) or target == "__init__.py":
                continue
            above, below = FLOOR.get(room(name), 0), FLOOR.get(room(target), 0)
            if below >= above:
                wrong.append(f"{name}:{line}: {room(name)} on floor {above} imports {module} on floor {below}")
    assert not wrong, "\n".join(wrong)


def test_no_circles_between_files() -> None:
    graph: dict[str, set[str]] = {}
    for name in NAMES:
        targets = {own(module) for module, _ in imports(name)} - {None, name}
        graph[name] = {target for target in targets if target and not target.endswith("__init__.py")}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join((*above[above.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*above, name))
            done.add(name)

    for name in NAMES:
        visit(name, ())


def torch_free() -> list[str]:
    names = [name.removesuffix(".py") for name in NAMES]
    found = [name for name in names if name in (*TORCH_FREE, *TORCH_FREE_TOO) or name.split("/")[0] in TORCH_FREE_ROOMS]
    assert set((*TORCH_FREE, *TORCH_FREE_TOO)) <= set(found)
    return [dotted(name) for name in found]


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(HOUSE.parent)}
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, env=env, check=False)


def test_torch_free_rooms_load_where_there_is_no_torch() -> None:
    """Each module on its own, in an interpreter that refuses torch; all that fail are listed."""
    code = """
import importlib, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("torch is not here", name="torch")
sys.meta_path.insert(0, NoTorch())
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(name, error)
        for loaded in [m for m in sys.modules if m.startswith("algorist")]:
            del sys.modules[loaded]
"""
    done = python(code, *torch_free())
    assert done.returncode == 0, done.stderr
    assert not done.stdout, f"these need torch:\n{done.stdout}"


def test_torch_free_rooms_do_not_load_torch() -> None:
    code = "import importlib, sys; [importlib.import_module(n) for n in sys.argv[1:]]; sys.exit('torch' in sys.modules)"
    done = python(code, *torch_free())
    assert done.returncode == 0, done.stderr or "torch was imported"


def test_distribution_stays_in_two_files() -> None:
    allowed = {"model/devices.py", "model/checkpoints.py"}
    for name in set(NAMES) - allowed:
        text = (HOUSE / name).read_text(encoding="utf-8")
        assert "torch.distributed" not in text and "from torch import distributed" not in text, name


@pytest.mark.parametrize("name", NAMES)
def test_a_file_has_at_most_350_lines(name: str) -> None:
    assert len((HOUSE / name).read_text(encoding="utf-8").splitlines()) <= 350


@pytest.mark.parametrize("name", NAMES)
def test_a_function_has_at_most_60_lines_and_7_parameters(name: str) -> None:
    for node in functions(name):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        assert lines <= 60, f"{name}:{node.lineno}: {node.name} has {lines} lines"
        args = node.args
        counted = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs) if a.arg not in ("self", "cls")]
        # attention's `forward` answers to transformers' interface, which fixes what it is given.
        if (name, node.name) != ("model/attention.py", "forward"):
            assert len(counted) <= 7, f"{name}:{node.lineno}: {node.name} has {len(counted)} parameters"


def test_inheritance_is_at_most_one_deep() -> None:
    classes = [(name, node) for name in NAMES for node in ast.walk(TREES[name]) if isinstance(node, ast.ClassDef)]
    bases = {node.name: [ast.unparse(base).split(".")[-1] for base in node.bases] for _, node in classes}

    def depth(name: str) -> int:
        return max((1 + depth(base) for base in bases[name] if base in bases and base != name), default=0)

    for name, node in classes:
        assert depth(node.name) <= 1, f"{name}:{node.lineno}: {node.name}"


def test_settings_have_at_most_18_keys() -> None:
    """A stage's own and the loop's each: a section of a stage takes both, but the loop's are learned once."""
    from dataclasses import fields

    from algorist import tasks

    parts = [(name, part) for name, found in tasks.sections().items() for part in found]
    assert [(name, len(fields(part))) for name, part in parts if len(fields(part)) > 18] == []


def test_no_module_is_called_after_nothing() -> None:
    nothing = {"util", "utils", "helper", "helpers", "common", "misc", "base", "manager", "core", "lib"}
    # The base model is what the field calls it: these two rooms make it.
    allowed = {"stages/base.py", "toy/base.py"}
    parts = {name: set(name.removesuffix(".py").split("/")) for name in set(NAMES) - allowed}
    assert not [name for name, found in parts.items() if found & nothing]


@pytest.mark.parametrize("name", NAMES)
def test_everything_public_has_a_docstring(name: str) -> None:
    assert ast.get_docstring(TREES[name]), f"{name} does not say what it is for"

    def check(node: ast.Module | ast.ClassDef, where: str) -> None:
        for inner in node.body:
            if not isinstance(inner, ast.ClassDef | FunctionNode) or inner.name.startswith("_"):
                continue
            assert ast.get_docstring(inner), f"{name}:{inner.lineno}: {where}{inner.name} has no docstring"
            if isinstance(inner, ast.ClassDef):
                check(inner, f"{inner.name}.")

    check(TREES[name], "")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_runs_foreign_code(name: str) -> None:
    """Model output and downloaded files are never evaluated, unpickled or trusted with code."""
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    for module, line in imports(name):
        assert module.split(".")[0] not in forbidden, f"{name}:{line}: imports {module}"
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            dangerous = ("eval", "exec", "compile", "__import__", "torch.load", "os.system")
            assert called not in dangerous, f"{name}:{node.lineno}: {called}("
            for keyword in node.keywords:
                assert keyword.arg not in ("trust_remote_code", "allow_pickle"), f"{name}:{node.lineno}: {keyword.arg}"
                insecure = keyword.arg == "shell" and ast.unparse(keyword.value) != "False"
                assert not insecure, f"{name}:{node.lineno}: shell="
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert node.value not in ("trust_remote_code", "allow_pickle"), f"{name}:{node.lineno}"


# Two calls on the way go through a value: the task's own function, and the stage's loss.
THROUGH_VALUES = {
    ("pipeline.run", "task.make"): "tasks._stage",
    ("train.train", "stage.loss"): "stages/{stage}.loss",
}


def calls(function: ast.AST) -> Iterator[ast.Call]:
    """The calls that a function makes itself; those of functions defined inside it are theirs."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, FunctionNode):
            if isinstance(node, ast.Call):
                yield node
            yield from calls(node)


def called_by(address: str, stage: str) -> Iterator[str]:
    """Addresses ("file.function") of our functions that one of our functions calls by name."""
    file, _, path = address.partition(".")
    name = f"{file}.py"
    if name not in TREES:
        return
    node: ast.AST = TREES[name]
    for part in path.split("."):
        found_here = [n for n in ast.walk(node) if isinstance(n, FunctionNode) and n.name == part]
        if not found_here:  # a class, or a builtin
            return
        node = found_here[0]
    names: dict[str, str] = {}
    for statement in ast.walk(TREES[name]):
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                whole = own(f"{statement.module}.{alias.name}")
                origin = own(statement.module or "")
                names[alias.asname or alias.name] = whole or (f"{origin}:{alias.name}" if origin else "")
    for call in calls(node):
        spelled = ast.unparse(call.func)
        if (address, spelled) in THROUGH_VALUES:
            yield THROUGH_VALUES[address, spelled].format(stage=stage)
            continue
        first, _, rest = spelled.partition(".")
        found = names.get(first, "")
        if found and ":" in found and not rest:
            yield found.replace(".py:", ".")
        elif found.endswith(".py") and rest and "." not in rest:
            yield f"{found.removesuffix('.py')}.{rest}"
        elif not rest and first not in names:
            yield f"{file}.{first}"


def way_to_a_loss(stage: str) -> list[str]:
    """The shortest way of plain calls from the command to a function of numerics/losses.py."""
    ways = [["cli.run"]]
    seen = {"cli.run"}
    while ways:
        way = ways.pop(0)
        if way[-1].startswith("numerics/losses."):
            return way
        for address in called_by(way[-1], stage):
            if address not in seen:
                seen.add(address)
                ways.append([*way, address])
    raise AssertionError(f"no way from the command to the loss of {stage} was found")


@pytest.mark.parametrize("stage", ["midtrain", "dpo", "rlvr"])
def test_command_line_to_loss_in_at_most_four_plain_calls(stage: str) -> None:
    """cli.run → pipeline.run → tasks._stage → train.train → the stage's loss; one more to its formula in numerics."""
    way = way_to_a_loss(stage)
    assert way[-2] in (f"stages/{stage}.loss", "stages/midtrain.loss"), " → ".join(way)
    assert len(way) - 2 <= 4, " → ".join(way)


def test_help_answers_in_half_a_second_without_torch() -> None:
    code = """
import sys
sys.argv = ["algorist", "--help"]
from algorist.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""
    fastest = float("inf")
    for _ in range(3):
        before = os.times()
        done = python(code)
        after = os.times()  # the child's processor time: what it takes on a machine that does nothing else
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        fastest = min(fastest, spent)
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout
    assert fastest < 0.5
