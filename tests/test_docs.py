"""What README and docs say can be done as written: commands, links, paths, names of functions, recipes."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from algorist import cli, recipe, show, tasks

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "src" / "algorist"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
TEXTS = {name: page.read_text(encoding="utf-8") for name, page in zip(NAMES, PAGES, strict=True)}
SNIPPETS = [(name, text) for name in NAMES for text in re.findall(r"```toml\n(.*?)```", TEXTS[name], re.DOTALL)]
MADE_BY_USE = ("runs/", "data/math")  # folders that commands in the docs write
VERBS: Any = typer.main.get_command(cli.app)


def prose(name: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", TEXTS[name], flags=re.DOTALL)


def inline(name: str) -> list[str]:
    """What stands between backticks outside blocks, line breaks folded."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(name))]


def blocks(name: str) -> Iterator[str]:
    """The lines of blocks that are not in a language of their own; a backslash joins lines."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", TEXTS[name], re.DOTALL | re.MULTILINE):
        if language in ("", "sh", "bash", "console"):
            yield from block.replace("\\\n", " ").splitlines()


def commands() -> list[tuple[str, str, bool]]:
    """(page, command, whether it is whole) for every `algorist …`; a verb with words in capitals is not whole."""
    found = []
    for name in NAMES:
        whole = [line.strip().removeprefix("$ ") for line in blocks(name)]
        parts = [re.sub(r"^[A-Z_]+=\S+ ", "", code) for code in inline(name)]
        found += [(name, text, True) for text in whole if text.startswith("algorist ")]
        found += [(name, text, False) for text in parts if text.startswith("algorist ")]
    return found


def complete(words: list[str]) -> bool:
    return len(words) > 1 and not any(word.isupper() or "…" in word for word in words)


@pytest.mark.parametrize(("name", "text", "whole"), commands())
def test_a_command_parses(name: str, text: str, whole: bool) -> None:
    words = shlex.split(text)[1:]
    if words[0].startswith("--"):
        assert words in (["--help"], ["--version"])
        return
    assert words[0] in VERBS.commands, f"{name}: {text}: there is no verb {words[0]}"
    verb = VERBS.commands[words[0]]
    options = {option for parameter in verb.params for option in parameter.opts if option.startswith("--")}
    assert {word for word in words if word.startswith("--")} <= options | {"--help"}, f"{name}: {text}"
    if not whole and not complete(words):
        return
    given = verb.make_context(words[0], words[1:]).params
    if words[0] in ("run", "check") and (ROOT / given["recipe"]).exists():
        settings = recipe.read(ROOT / given["recipe"], tasks.sections(), given["set_"] or [])
        if given.get("until"):
            assert given["until"] in [task.name for task in tasks.tasks(settings)], f"{name}: {text}"
    if words[0] == "show":
        assert given["what"] in ("", *show.VIEWS), f"{name}: {text}: there is no such view"


def test_commands_are_found() -> None:
    verbs = {text.split()[1] for name, text, whole in commands() if name == "README.md" and whole}
    assert {"run", "check", "gather", "show"} <= verbs and len(commands()) > 20


def test_every_verb_is_in_the_readme() -> None:
    assert [verb for verb in VERBS.commands if f"| `algorist {verb}" not in TEXTS["README.md"]] == []


@pytest.mark.parametrize("name", NAMES)
def test_what_make_is_asked_for_exists(name: str) -> None:
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = [*blocks(name), *inline(name)]
    assert {text.split()[1] for text in asked if re.fullmatch(r"make [a-z]+", text.strip())} <= rules


@pytest.mark.parametrize("name", NAMES)
def test_a_link_leads_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(name)):
        if not target.startswith(("http://", "https://")):
            assert (ROOT / name).parent.joinpath(target.split("#")[0]).exists(), f"{name}: {target}"


@pytest.mark.parametrize("name", NAMES)
def test_a_path_and_a_function_in_the_text_exist(name: str) -> None:
    for code in inline(name):
        place, _, function = code.partition(":")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*(/|\.(py|toml|md|txt))|tests/[\w/]+|src/[\w/]+", place):
            continue
        if place.startswith(MADE_BY_USE) or place == "mine.toml":
            continue
        homes = [base / place for base in (ROOT, HOUSE, ROOT / "recipes") if (base / place).exists()]
        assert homes, f"{name}: {place} is not there"
        if function:
            assert function in defined(homes[0]), f"{name}: {place} has no {function}"


def defined(path: Path) -> set[str]:
    """Functions, classes and methods (as Class.method) of a file."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return found


def test_the_picture_of_the_house_is_of_this_house() -> None:
    picture = TEXTS["README.md"].split("## The house")[1].split("```")[1].split("src/algorist/")[1].split("\ntests/")[0]
    drawn = re.findall(r"^  ([a-z]+/|[a-z]+\.py)", picture, re.MULTILINE) + re.findall(r"[a-z]+\.py", picture)
    assert [place for place in drawn if not (HOUSE / place).exists()] == []
    rooms = {path.name for path in HOUSE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert {room for room in rooms if not room.startswith("__")} <= {place.rstrip("/") for place in drawn}


@pytest.mark.parametrize(("name", "text"), SNIPPETS)
def test_a_recipe_in_the_text_can_be_read(name: str, text: str, tmp_path: Path) -> None:
    named = text if "name" in tomllib.loads(text) else f'name = "snippet"\n{text}'
    path = tmp_path / "snippet.toml"
    path.write_text(named, encoding="utf-8")
    recipe.read(path, tasks.sections())


def test_the_readme_has_a_recipe_and_a_place_for_the_table() -> None:
    assert any(name == "README.md" for name, _ in SNIPPETS)
    text = TEXTS["README.md"]
    assert 0 < text.index("<!-- table:begin -->") < text.index("<!-- table:end -->")


def test_the_page_of_keys_is_up_to_date(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, 'docs'); import make_recipes; print(make_recipes.page(), end='')"
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == TEXTS["docs/recipes.md"], "docs/recipes.md is old: run python docs/make_recipes.py"


def test_the_page_of_keys_has_every_key_with_its_default(tmp_path: Path) -> None:
    path = tmp_path / "bare.toml"
    path.write_text('name = "bare"\n', encoding="utf-8")
    resolved = {k: v for k, v in recipe.read(path, tasks.sections()).resolved().items() if isinstance(v, dict)}
    shown: dict[str, Any] = {}
    for part in TEXTS["docs/recipes.md"].split("\n## [")[1:]:
        section = part.split("]")[0]
        lines = "\n".join(f"{key} = {value}" for key, value in re.findall(r"^\| `(.+?)` \| `(.+?)` \|", part, re.M))
        shown[section] = tomllib.loads(lines)
    assert shown == resolved
