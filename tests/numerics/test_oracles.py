"""Every public function of numerics/ has a slow twin of the same name, and none of them leans on torch."""

import ast
import importlib
from pathlib import Path

import pytest

import algorist.numerics

ROOM = Path(algorist.numerics.__file__).parent
MODULES = sorted(path.stem for path in ROOM.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", MODULES)
def test_every_public_function_has_a_twin(name: str) -> None:
    tree = ast.parse((ROOM / f"{name}.py").read_text(encoding="utf-8"))
    public = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}
    twins = vars(importlib.import_module(f"oracles.{name}"))
    assert public, f"numerics/{name}.py has no public function: the test would prove nothing"
    assert public <= set(twins), f"tests/oracles/{name}.py lacks {sorted(public - set(twins))}"


@pytest.mark.parametrize("name", MODULES)
def test_twins_are_plain_python(name: str) -> None:
    path = Path(importlib.import_module(f"oracles.{name}").__file__ or "")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for imported in names:
            assert imported.split(".")[0] not in ("torch", "numpy", "algorist"), f"{path.name} imports {imported}"


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    import doctest

    module = importlib.import_module(f"algorist.numerics.{name}")
    failed, tried = doctest.testmod(module, extraglobs={"np": __import__("numpy"), "torch": __import__("torch")})
    assert failed == 0
    assert tried or name == "address", f"numerics/{name}.py has no example"
