"""The recipe: a TOML file becomes frozen settings, strictly.

A section of the file fills one or more frozen dataclasses that stand beside the code they steer; the caller says which
(`sections`), so this room knows no stage. What is not a key is an error with a suggestion, what has another type than
its field is an error that says both, and the resolved recipe is itself a recipe.

Three layers, one rule: parents (`extends`) below, the file above them, `--set` on top; tables merge key by key,
everything else replaces.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w
from pydantic import TypeAdapter, ValidationError

from algorist.errors import RecipeError

Kind = TypeVar("Kind")
Address = tuple[str | int, ...]  # ("rlvr", "temperature", "start"); () is the recipe itself
Sections = Mapping[str, tuple[Any, ...]]  # section → settings classes, or instances that hold a stage's own defaults
TOP = ("name", "seed", "stages", "extends")
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe. Two are equal when their settings are, wherever they were read from."""

    path: Path = field(compare=False)
    name: str
    seed: int
    values: Mapping[str, tuple[Any, ...]]  # section → its filled settings, in the order of `sections`
    others: Mapping[str, Any] = field(default_factory=dict)  # sections that only other verbs read, as written
    stages: tuple[str, ...] | None = None  # that run, each on what the one before it made; None: all

    def of(self, section: str, kind: type[Kind]) -> Kind:
        """The settings of one class in one section."""
        found = [value for value in self.values[section] if type(value) is kind]
        assert len(found) == 1, f"[{section}] holds {len(found)} settings of {kind.__name__}"
        return found[0]

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, defaults included, as TOML would parse it; keys that are None are left out."""
        sections = {
            section: {key: value for settings in filled for key, value in _plain(settings).items()}
            for section, filled in self.values.items()
        }
        return {**_plain({"name": self.name, "seed": self.seed, "stages": self.stages}), **sections, **self.others}

    def dumps(self) -> str:
        """The resolved recipe as TOML; reading it again gives an equal recipe."""
        return tomli_w.dumps(self.resolved())


def read(path: Path | None, sections: Sections, overrides: Sequence[str] = (), others: Collection[str] = ()) -> Recipe:
    """Read a recipe, with what it extends below it and `overrides` ("section.key=value") on top; None: these alone.

    An element of `sections` is a frozen dataclass or an instance of one, whose values are then the defaults. A section
    that the file leaves out has its defaults. `others` are sections that are carried along unread. Raises RecipeError
    for whatever cannot be used as written.
    """
    table, origins = _load(path, ()) if path else ({"name": "defaults"}, {})
    path = path or Path("--set")
    for text in overrides:
        change = _override(text)
        table = _merged(table, change)
        origins.update({address: f"--set {text}" for address, _ in _walk(change)})
    source = _Source(path, sections, table, origins)
    for key, value in table.items():
        if key in sections or key in TOP or key in others:
            continue
        if isinstance(value, dict):
            hint = _hint(f"[{key}]", [f"[{section}]" for section in sections], {})
            raise source.fault((key,), f"[{key}] is not a section of a recipe. {hint}")
        raise source.fault((key,), f"{key} is not a key at the top of a recipe. {_hint(key, TOP, sections)}")
    if "name" not in table:
        raise source.fault((), 'name is missing, a string was expected. Add name = "..." at the top.')
    name = _converted(source, ("name",), table["name"], str)
    seed = _converted(source, ("seed",), table.get("seed", 0), int)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        rule = 'a folder name was expected: a letter or digit, then letters, digits, ".", "_" and "-".'
        raise source.fault(("name",), f"name is {_shown(name)}, {rule}")
    if seed < 0:
        raise source.fault(("seed",), f"seed is {seed}, a whole number from 0 up was expected.")
    stages = _converted(source, ("stages",), table["stages"], tuple[str, ...]) if "stages" in table else None
    values = {section: _section(source, section) for section in sections}
    return Recipe(path, name, seed, values, {name: table[name] for name in others if name in table}, stages)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two resolved recipes (as parsed dicts): lines like `[sft] learning_rate 0.001 → 0.002`."""
    before, after = _leaves(old), _leaves(new)
    return [
        f"{_label(address)} {_shown(before.get(address, MISSING))} → {_shown(after.get(address, MISSING))}"
        for address in [*after, *(address for address in before if address not in after)]
        if before.get(address, MISSING) != after.get(address, MISSING)
    ]


@dataclass(frozen=True)
class _Source:
    """Everything that was written for a recipe, merged, with who wrote what: errors name the right file."""

    path: Path
    sections: Sections
    table: dict[str, Any]
    origins: dict[Address, str]  # "recipes/paper.toml" or "--set seed=3"

    def fault(self, address: Address, message: str) -> RecipeError:
        """The error for what is written at `address`."""
        while address and address not in self.origins:
            address = address[:-1]
        return RecipeError(f"{self.origins.get(address, self.path)}: {message}")

    def fault_of(self, section: str, message: str) -> RecipeError:
        """The error for a section whose values do not go together, whoever wrote them."""
        overrides = [who for where, who in self.origins.items() if where[0] == section and who.startswith("--set ")]
        return RecipeError(f"{' with '.join([str(self.path), *dict.fromkeys(overrides)])}: {message}")

    def refuse_unknown(self, address: Address, given: Mapping[str, Any], known: Collection[str]) -> None:
        """Raise for the first key of a table or section that is not one of its keys."""
        place = "table" if len(address) > 1 else "section"
        for key in (key for key in given if key not in known):
            message = f"{_label((*address, key))} is not a key of this {place}. {_hint(key, known, self.sections)}"
            raise self.fault((*address, key), message)


def _load(path: Path, children: tuple[Path, ...]) -> tuple[dict[str, Any], dict[Address, str]]:
    """A file merged over what it extends; `children` are the files that led here."""
    if path.resolve() in [child.resolve() for child in children]:
        circle = " → ".join(file.name for file in (*children, path))
        raise RecipeError(f"{children[-1]}: extends goes round in a circle ({circle}). Take one of them out.")
    table = _parsed(path, children)
    origins = {address: str(path) for address, _ in _walk(table)}
    parent = table.pop("extends", None)
    if parent is None:
        return table, origins
    if not isinstance(parent, str):
        raise RecipeError(f"{path}: extends is {_shown(parent)}, a string was expected.")
    below, below_origins = _load(path.parent / parent, (*children, path))
    return _merged(below, table), {**below_origins, **origins}


def _parsed(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    """The content of one TOML file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        others = ", ".join(sorted(file.name for file in path.parent.glob("*.toml")))
        listed = f"Recipes in this folder: {others}." if others else "There are no others in this folder either."
        asked = f" ({children[-1].name} extends it)" if children else ""
        raise RecipeError(f"{path}: there is no such recipe{asked}. {listed}") from None
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else f"byte {error.start} is not UTF-8"
        raise RecipeError(f"{path}: not readable ({what}). Name a recipe, a UTF-8 text file.") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        place = f"{path}:{found[1]}" if found else str(path)
        raise RecipeError(f"{place}: {error}. Write key = value, text in quotes, each key once.") from None


def _override(text: str) -> dict[str, Any]:
    """The table that `section.key=value` stands for."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise RecipeError(f"--set {text}: there is no value. Write --set section.key=value.")
    try:
        (address,) = _leaves(tomllib.loads(f"{key} = 0"))
    except ValueError:
        raise RecipeError(f"--set {text}: {_shown(key)} is not a key. Write --set section.key=value.") from None
    if address == ("extends",):
        raise RecipeError(f"--set {text}: extends is not for --set. Write it at the top of a recipe.")
    try:
        (content,) = tomllib.loads(f"value = {value}").values()
    except ValueError:
        content = value
    for part in reversed(address):
        content = {part: content}
    return typing.cast(dict[str, Any], content)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`: tables merge key by key, everything else replaces."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        result[key] = _merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return result


def _walk(table: Mapping[str, Any], above: Address = ()) -> Iterator[tuple[Address, Any]]:
    """(address, value) of every key, tables before what they hold."""
    for key, value in table.items():
        yield (*above, key), value
        if isinstance(value, dict):
            yield from _walk(value, (*above, key))


def _leaves(table: Mapping[str, Any]) -> dict[Address, Any]:
    """address → value of every key that is not a table."""
    return {address: value for address, value in _walk(table) if not isinstance(value, dict)}


def _section(source: _Source, section: str) -> tuple[Any, ...]:
    """The filled settings of one section."""
    given = source.table.get(section, {})
    if not isinstance(given, dict):
        raise source.fault((section,), f"{section} is {_shown(given)}, a section was expected. Write [{section}].")
    known = _keys(source.sections[section])
    assert len(known) == len(set(known)), f"two settings of [{section}] share a key: {known}"
    source.refuse_unknown((section,), given, known)
    return tuple(_built(source, (section,), template, given) for template in source.sections[section])


def _built(source: _Source, address: Address, template: Any, given: Mapping[str, Any]) -> Any:
    """An instance of `template`, a dataclass or an instance of one, with the values of `given` that are its keys."""
    kind = template if isinstance(template, type) else type(template)
    hints = typing.get_type_hints(kind)
    given = _merged(getattr(kind, "presets", {}).get(str(given.get("preset")), {}), given)
    values = {}
    for item in dataclasses.fields(kind):
        here = (*address, item.name)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if template is not kind:
            default = getattr(template, item.name)
        if item.name in given:
            values[item.name] = _converted(source, here, given[item.name], hints[item.name], default)
        elif default is MISSING:
            message = f"{_label(here)} is missing, {_expected(hints[item.name])} was expected. Add it."
            raise source.fault(address if len(address) > 1 else (), message)
    try:
        return kind(**values) if template is kind else dataclasses.replace(template, **values)
    except ValueError as error:
        inside = f"{_label(address)}: " if len(address) > 1 else f"[{address[0]}] "
        raise source.fault_of(str(address[0]), f"{inside}{error}") from error


def _converted(source: _Source, address: Address, value: Any, hint: Any, default: Any = MISSING) -> Any:
    """`value` as its field has it: lists as tuples, tables as dataclasses over their defaults, or as dicts."""
    shape = "table" if isinstance(value, dict) else "list" if isinstance(value, list) else "leaf"
    options = [option for option in _options(hint) if _shape(option) == shape]
    wrong = source.fault(address, f"{_label(address)} is {_shown(value)}, {_expected(hint)} was expected.")
    if not options or (isinstance(value, float) and math.isnan(value)):
        raise wrong
    option, inner = options[0], typing.get_args(options[0])
    if isinstance(value, dict) and dataclasses.is_dataclass(option):
        source.refuse_unknown(address, value, _keys([option]))
        return _built(source, address, default if type(default) is option else option, value)
    if isinstance(value, dict):
        return {key: _converted(source, (*address, key), item, inner[1]) for key, item in value.items()}
    if isinstance(value, list):
        hints = [inner[0]] * len(value) if inner[-1] is ... else inner
        if len(hints) != len(value):
            raise wrong
        return tuple(_converted(source, (*address, i), item, hints[i]) for i, item in enumerate(value))
    for option in options:
        try:
            return TypeAdapter(option).validate_python(value, strict=True)
        except ValidationError:
            continue
    raise wrong


def _options(hint: Any) -> list[Any]:
    """What a key may hold. TOML has no null: None is said by leaving the key out."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return [option for option in (typing.get_args(hint) if union else (hint,)) if option is not type(None)]


def _shape(option: Any) -> str:
    if dataclasses.is_dataclass(option) or typing.get_origin(option) in (dict, Mapping):
        return "table"
    return "list" if typing.get_origin(option) is tuple else "leaf"


def _keys(templates: Collection[Any]) -> list[str]:
    return [item.name for template in templates for item in dataclasses.fields(template)]


def _hint(word: str, known: Collection[str], sections: Sections) -> str:
    """What to write instead of `word`: the nearest known word, the section that has it, or one of all."""
    if near := difflib.get_close_matches(word.lower().replace("-", "_"), known, n=1):
        return f"Did you mean {near[0]}?"
    owners = [f"[{section}]" for section, templates in sections.items() if word in _keys(templates)]
    if sections and word in TOP:
        return "It belongs at the top of the recipe, above the first section."
    return f"It belongs to {' or '.join(owners)}." if owners else f"Known here: {', '.join(known)}."


def _label(address: Address) -> str:
    """`[rlvr] temperature.start`, `[data] problems[1]`, `seed`, `stages[0]`."""
    steps = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in address[1:])
    return f"[{address[0]}] {steps[1:]}" if steps.startswith(".") else f"{address[0]}{steps}"


def _shown(value: Any) -> str:
    """A value as its writer wrote it, cut where it is long."""
    if value is MISSING or isinstance(value, dict):
        return "not set" if value is MISSING else "a table"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)
    if isinstance(value, list):
        text = f"[{', '.join(_shown(item) for item in value)}]"
    return text if len(text) <= 80 else f"{text[:79]}…"


def _expected(hint: Any) -> str:
    """What a field takes, in words: `a whole number`, `a list of strings`, `a table with start, end`."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if len(options := _options(hint)) > 1 or options[0] is not hint:
        return " or ".join(_expected(option) for option in options)
    if origin is Literal:
        return f"one of {', '.join(_shown(value) for value in inner)}"
    if dataclasses.is_dataclass(hint):
        return f"a table with {', '.join(_keys([hint]))}"
    if _shape(hint) == "table":
        return f"a table of {_plural(inner[1])}"
    if _shape(hint) == "list":
        items = _plural(inner[0]) if inner[-1] is ... else ", ".join(_expected(item) for item in inner)
        return f"a list of {items}"
    return _WORDS[hint]


def _plural(hint: Any) -> str:
    """`a whole number` → `whole numbers`; what does not start with "a " is put as a choice."""
    words = _expected(hint)
    return f"{words[2:]}s" if hint in (int, float, str) else f"items, each {words}"


def _plain(value: Any) -> Any:
    """Settings as TOML would parse them: dataclasses as tables, tuples as lists, None left out."""
    if dataclasses.is_dataclass(value):
        return _plain({item.name: getattr(value, item.name) for item in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
