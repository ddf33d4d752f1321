"""Recipes: what fills settings, what is refused, and each message word for word."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import pytest

from algorist import recipe
from algorist.errors import RecipeError


@dataclass(frozen=True)
class Anneal:
    start: float
    end: float = 0.6
    over: float = 0.5

    def __post_init__(self) -> None:
        if self.end > self.start:
            raise ValueError(f"end {self.end} is above start {self.start}. Lower end.")


@dataclass(frozen=True)
class Training:
    learning_rate: float = 1e-5
    batch_size: int = 128
    max_grad_norm: float | None = 1.0
    stop_after: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, 1 or more was expected.")


@dataclass(frozen=True)
class Model:
    base: str


@dataclass(frozen=True)
class Sft:
    packing: bool = False
    levels: tuple[str, ...] = ("college",)
    span: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Rlvr:
    algorithm: Literal["grpo", "ppo"] = "grpo"
    temperature: float | Anneal = Anneal(1.0)
    clip_high: float = 0.2
    preset: Literal["plain", "high"] = "plain"
    presets: ClassVar[Mapping[str, Any]] = MappingProxyType({"high": {"clip_high": 0.28, "temperature": {"end": 0.9}}})


@dataclass(frozen=True)
class Evaluate:
    samples: dict[str, int] | int = 1
    seeds: tuple[int, ...] | None = None
    weights: dict[str, float] = field(default_factory=lambda: {"aime24": 1.0})


SECTIONS = {
    "model": (Model,),
    "sft": (Sft, Training(batch_size=64)),
    "rlvr": (Rlvr, Training(learning_rate=5e-7)),
    "evaluate": (Evaluate,),
}
HEAD = 'name = "mine"\n[model]\nbase = "b"\n'


def made(folder: Path, text: str, overrides: tuple[str, ...] = (), name: str = "mine.toml") -> recipe.Recipe:
    (folder / name).write_text(text, encoding="utf-8")
    return recipe.read(folder / name, SECTIONS, overrides)


def message(folder: Path, text: str, *overrides: str) -> str:
    """What a user is told about this recipe, without the folder."""
    with pytest.raises(RecipeError) as caught:
        made(folder, text, overrides)
    return str(caught.value).replace(f"{folder}/", "")


def test_defaults_of_the_class_of_the_stage_and_of_the_file(tmp_path: Path) -> None:
    found = made(tmp_path, HEAD + "[sft]\npacking = true\n[rlvr]\nbatch_size = 8\n")
    assert (found.name, found.seed, found.of("model", Model)) == ("mine", 0, Model("b"))
    assert found.of("sft", Sft) == Sft(packing=True)
    assert found.of("sft", Training) == Training(batch_size=64)
    assert found.of("rlvr", Training) == Training(learning_rate=5e-7, batch_size=8)
    assert found.of("evaluate", Evaluate) == Evaluate()
    with pytest.raises(FrozenInstanceError):
        found.seed = 1  # type: ignore[misc]


def test_values_take_the_type_of_their_field(tmp_path: Path) -> None:
    found = made(
        tmp_path,
        HEAD + '[sft]\nlevels = ["a", "b"]\nspan = [2, 3]\nlearning_rate = 1\n[rlvr]\ntemperature = 0.8\n'
        "[evaluate]\nsamples = { aime24 = 64, gpqa-diamond = 8 }\nseeds = [1, 2]\n",
    )
    assert found.of("sft", Sft) == Sft(levels=("a", "b"), span=(2, 3))
    assert type(found.of("sft", Training).learning_rate) is float
    assert found.of("rlvr", Rlvr).temperature == 0.8
    assert found.of("evaluate", Evaluate) == Evaluate({"aime24": 64, "gpqa-diamond": 8}, (1, 2))


def test_a_nested_table_keeps_the_defaults_it_does_not_name(tmp_path: Path) -> None:
    found = made(tmp_path, HEAD + "[rlvr]\ntemperature = { end = 0.7 }\n")
    assert found.of("rlvr", Rlvr).temperature == Anneal(1.0, 0.7, 0.5)


def test_a_table_of_names_takes_the_place_of_its_default(tmp_path: Path) -> None:
    """Whoever names benchmarks wants those scored, and not the default one beside them."""
    found = made(tmp_path, HEAD, ("evaluate.weights.math500=2",))
    assert found.of("evaluate", Evaluate).weights == {"math500": 2.0}
    assert made(tmp_path, HEAD).of("evaluate", Evaluate).weights == {"aime24": 1.0}


def test_extends_merges_underneath(tmp_path: Path) -> None:
    (tmp_path / "paper.toml").write_text("seed = 1\n" + HEAD + "[sft]\nbatch_size = 2\npacking = true\n")
    (tmp_path / "sub").mkdir()
    text = 'extends = "../paper.toml"\nname = "child"\n[sft]\nbatch_size = 3\n'
    found = made(tmp_path / "sub", text)
    assert (found.name, found.seed, found.of("model", Model).base) == ("child", 1, "b")
    assert (found.of("sft", Sft).packing, found.of("sft", Training).batch_size) == (True, 3)


def test_overrides(tmp_path: Path) -> None:
    found = made(
        tmp_path,
        HEAD + "[sft]\nbatch_size = 2\n[evaluate]\nsamples = { aime24 = 64 }\n",
        (
            "seed=3",
            "name=x",
            "sft.batch_size=5",
            "sft.batch_size = 7",
            "rlvr.temperature.start=0.8",
            'evaluate.samples."math.500"=8',
            'sft.levels=["a"]',
            "model.base=org/model 1=2",
        ),
    )
    assert (found.name, found.seed, found.of("model", Model).base) == ("x", 3, "org/model 1=2")
    assert found.of("sft", Training).batch_size == 7
    assert found.of("sft", Sft).levels == ("a",)
    assert found.of("rlvr", Rlvr).temperature == Anneal(0.8)
    assert found.of("evaluate", Evaluate).samples == {"aime24": 64, "math.500": 8}


def test_the_resolved_recipe_is_an_equal_recipe(tmp_path: Path) -> None:
    text = (
        'name = "mine"\nseed = 4\n[rlvr]\nlearning_rate = 3.3e-7\ntemperature.end = 0.1\nmax_grad_norm = inf\n'
        '[model]\nbase = "ü\\"\\\\\\n"\n[evaluate]\nsamples = { aime24 = 64 }\n'
    )
    first = made(tmp_path, text, ("sft.stop_after=3",))
    again = made(tmp_path, first.dumps(), name="again.toml")
    assert again == first
    assert again.dumps() == first.dumps()
    assert tomllib.loads(first.dumps()) == first.resolved()
    assert first.resolved()["sft"] == {
        "packing": False,
        "levels": ["college"],
        "span": [0, 1],
        "learning_rate": 1e-5,
        "batch_size": 64,
        "max_grad_norm": 1.0,
        "stop_after": 3,
    }
    assert "stop_after" not in first.resolved()["rlvr"]
    assert "seeds" not in first.resolved()["evaluate"]
    assert (first.stages, "stages" in first.resolved()) == (None, False)
    some = made(tmp_path, text, ('stages=["rlvr"]',))
    assert some.stages == ("rlvr",) and made(tmp_path, some.dumps(), name="again.toml") == some != first


def test_differences(tmp_path: Path) -> None:
    old = made(tmp_path, HEAD + "[sft]\nlearning_rate = 0.001\nstop_after = 3\n[rlvr]\ntemperature = { end = 0.5 }\n")
    new = made(tmp_path, HEAD + '[sft]\nlearning_rate = 0.002\nlevels = ["a"]\n[evaluate]\nseeds = [1]\n', ("seed=3",))
    assert recipe.differences(old.resolved(), new.resolved()) == [
        "seed 0 → 3",
        '[sft] levels ["college"] → ["a"]',
        "[sft] learning_rate 0.001 → 0.002",
        "[rlvr] temperature.end 0.5 → 0.6",
        "[evaluate] seeds not set → [1]",
        "[sft] stop_after 3 → not set",
    ]
    assert recipe.differences(old.resolved(), old.resolved()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[rlvr]\ntemprature = 1\n", "[rlvr] temprature is not a key of this section. Did you mean temperature?"),
        ("[rlvr]\nBATCH-SIZE = 1\n", "[rlvr] BATCH-SIZE is not a key of this section. Did you mean batch_size?"),
        ("[rlvr]\npacking = true\n", "[rlvr] packing is not a key of this section. It belongs to [sft]."),
        (
            "[evaluate]\nlearning_rate = 1\n",
            "[evaluate] learning_rate is not a key of this section. It belongs to [sft] or [rlvr].",
        ),
        (
            "[sft]\nseed = 1\n",
            "[sft] seed is not a key of this section. It belongs at the top of the recipe, above the first section.",
        ),
        ("[evaluate]\nqqq = 1\n", "[evaluate] qqq is not a key of this section. Known here: samples, seeds, weights."),
        (
            "[rlvr]\ntemperature = { strat = 1.0 }\n",
            "[rlvr] temperature.strat is not a key of this table. Did you mean start?",
        ),
        (
            "[rlvr.temperature]\nqqq = 1.0\n",
            "[rlvr] temperature.qqq is not a key of this table. Known here: start, end, over.",
        ),
        ("[rlrv]\nx = 1\n", "[rlrv] is not a section of a recipe. Did you mean [rlvr]?"),
        (
            "[zzzzzz]\nx = 1\n",
            "[zzzzzz] is not a section of a recipe. Known here: [model], [sft], [rlvr], [evaluate].",
        ),
    ],
)
def test_unknown_names(tmp_path: Path, text: str, expected: str) -> None:
    assert message(tmp_path, HEAD + text) == f"mine.toml: {expected}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sed = 1\n", "sed is not a key at the top of a recipe. Did you mean seed?"),
        ("packing = true\n", "packing is not a key at the top of a recipe. It belongs to [sft]."),
        ("qqq = 1\n", "qqq is not a key at the top of a recipe. Known here: name, seed, stages, extends."),
        ('seed = "a"\n', 'seed is "a", a whole number was expected.'),
        ("seed = true\n", "seed is true, a whole number was expected."),
        ("seed = -1\n", "seed is -1, a whole number from 0 up was expected."),
        ('stages = "sft"\n', 'stages is "sft", a list of strings was expected.'),
        ("stages = [3]\n", "stages[0] is 3, a string was expected."),
        ("sft = 3\n", "sft is 3, a section was expected. Write [sft]."),
        ("extends = 3\n", "extends is 3, a string was expected."),
    ],
)
def test_top_of_the_recipe(tmp_path: Path, text: str, expected: str) -> None:
    assert message(tmp_path, text + HEAD) == f"mine.toml: {expected}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 'name is missing, a string was expected. Add name = "..." at the top.'),
        ("name = 3\n", "name is 3, a string was expected."),
        (
            'name = "a/b"\n',
            'name is "a/b", a folder name was expected: a letter or digit, then letters, digits, ".", "_" and "-".',
        ),
        (
            'name = ".."\n',
            'name is "..", a folder name was expected: a letter or digit, then letters, digits, ".", "_" and "-".',
        ),
        ('name = "x"\n', "[model] base is missing, a string was expected. Add it."),
    ],
)
def test_what_is_required(tmp_path: Path, text: str, expected: str) -> None:
    assert message(tmp_path, text) == f"mine.toml: {expected}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[sft]\nbatch_size = "many"\n', '[sft] batch_size is "many", a whole number was expected.'),
        ("[sft]\nbatch_size = 1e3\n", "[sft] batch_size is 1000.0, a whole number was expected."),
        ("[sft]\nbatch_size = true\n", "[sft] batch_size is true, a whole number was expected."),
        ("[sft]\nlearning_rate = true\n", "[sft] learning_rate is true, a number was expected."),
        ("[sft]\nlearning_rate = nan\n", "[sft] learning_rate is nan, a number was expected."),
        ('[sft]\nmax_grad_norm = "no"\n', '[sft] max_grad_norm is "no", a number was expected.'),
        ("[sft]\npacking = 1\n", "[sft] packing is 1, true or false was expected."),
        ('[sft]\nlevels = "a"\n', '[sft] levels is "a", a list of strings was expected.'),
        ('[sft]\nlevels = ["a", 3]\n', "[sft] levels[1] is 3, a string was expected."),
        (
            "[sft]\nspan = [1, 2, 3]\n",
            "[sft] span is [1, 2, 3], a list of a whole number, a whole number was expected.",
        ),
        ('[rlvr]\nalgorithm = "gpro"\n', '[rlvr] algorithm is "gpro", one of "grpo", "ppo" was expected.'),
        (
            '[rlvr]\ntemperature = "hot"\n',
            '[rlvr] temperature is "hot", a number or a table with start, end, over was expected.',
        ),
        ("[rlvr]\ntemperature.end = [1]\n", "[rlvr] temperature.end is [1], a number was expected."),
        ("[sft.batch_size]\nx = 1\n", "[sft] batch_size is a table, a whole number was expected."),
        ("[model.base]\n", None),
        ('[evaluate]\nsamples.math = "x"\n', '[evaluate] samples.math is "x", a whole number was expected.'),
        (
            "[evaluate]\nsamples = 1.5\n",
            "[evaluate] samples is 1.5, a table of whole numbers or a whole number was expected.",
        ),
        ("[sft]\nlearning_rate = 2024-01-02\n", "[sft] learning_rate is 2024-01-02, a number was expected."),
        (f'[sft]\nbatch_size = "{"x" * 99}"\n', f'[sft] batch_size is "{"x" * 78}…, a whole number was expected.'),
    ],
)
def test_wrong_types(tmp_path: Path, text: str, expected: str | None) -> None:
    if expected is None:  # the same key twice is TOML's to refuse
        expected = "Cannot overwrite a value (at line 4, column 12). Write key = value, text in quotes, each key once."
        assert message(tmp_path, HEAD + text) == f"mine.toml:4: {expected}"
    else:
        assert message(tmp_path, HEAD + text) == f"mine.toml: {expected}"


def test_what_settings_themselves_refuse(tmp_path: Path) -> None:
    refused = "[sft] batch_size is 0, 1 or more was expected."
    assert message(tmp_path, HEAD + "[sft]\nbatch_size = 0\n") == f"mine.toml: {refused}"
    assert message(tmp_path, HEAD, "sft.batch_size=0") == f"mine.toml with --set sft.batch_size=0: {refused}"
    nested = "[rlvr] temperature: end 0.9 is above start 0.8. Lower end."
    assert message(tmp_path, HEAD + "[rlvr]\ntemperature = { start = 0.8, end = 0.9 }\n") == f"mine.toml: {nested}"


def test_a_nested_table_without_a_default_names_what_it_lacks(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Bare:
        temperature: float | Anneal = 1.0

    (tmp_path / "paper.toml").write_text('name = "x"\n[rlvr]\ntemperature = { end = 0.1 }\n')
    (tmp_path / "mine.toml").write_text('extends = "paper.toml"\n')
    with pytest.raises(RecipeError) as caught:
        recipe.read(tmp_path / "mine.toml", {"rlvr": (Bare,)})
    expected = "paper.toml: [rlvr] temperature.start is missing, a number was expected. Add it."
    assert str(caught.value) == f"{tmp_path}/{expected}"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sft.batch_size", "there is no value. Write --set section.key=value."),
        ("sft..x=1", '"sft..x" is not a key. Write --set section.key=value.'),
        ("=1", '"" is not a key. Write --set section.key=value.'),
        ("# x=1", '"# x" is not a key. Write --set section.key=value.'),
        ("extends=paper.toml", "extends is not for --set. Write it at the top of a recipe."),
        ("sft.batch_size=8x", '[sft] batch_size is "8x", a whole number was expected.'),
        ("sft.batch_size=1\nx=2", '[sft] batch_size is "1\\nx=2", a whole number was expected.'),
        ("sft.bacth_size=8", "[sft] bacth_size is not a key of this section. Did you mean batch_size?"),
        ("slt.x=8", "[slt] is not a section of a recipe. Did you mean [sft]?"),
        ("sed=8", "sed is not a key at the top of a recipe. Did you mean seed?"),
        ("sft=8", "sft is 8, a section was expected. Write [sft]."),
        ("sft.batch_size.x=3", "[sft] batch_size is a table, a whole number was expected."),
        ("rlvr.temperature.strat=3", "[rlvr] temperature.strat is not a key of this table. Did you mean start?"),
        (
            "name=a b",
            'name is "a b", a folder name was expected: a letter or digit, then letters, digits, ".", "_" and "-".',
        ),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, expected: str) -> None:
    assert message(tmp_path, HEAD, "seed=1", override) == f"--set {override}: {expected}"


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.read(tmp_path / "x.toml", SECTIONS)
    assert (
        str(caught.value) == f"{tmp_path}/x.toml: there is no such recipe. There are no others in this folder either."
    )
    (tmp_path / "b.toml").touch()
    (tmp_path / "a.toml").touch()
    with pytest.raises(RecipeError) as caught:
        recipe.read(tmp_path / "x.toml", SECTIONS)
    assert str(caught.value) == f"{tmp_path}/x.toml: there is no such recipe. Recipes in this folder: a.toml, b.toml."
    expected = (
        "papr.toml: there is no such recipe (mine.toml extends it). Recipes in this folder: a.toml, b.toml, mine.toml."
    )
    assert message(tmp_path, 'extends = "papr.toml"\n' + HEAD) == expected
    with pytest.raises(RecipeError) as caught:
        recipe.read(tmp_path, SECTIONS)
    assert str(caught.value) == f"{tmp_path}: not readable (Is a directory). Name a recipe, a UTF-8 text file."
    (tmp_path / "b.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(RecipeError) as caught:
        recipe.read(tmp_path / "b.toml", SECTIONS)
    assert (
        str(caught.value) == f"{tmp_path}/b.toml: not readable (byte 8 is not UTF-8). Name a recipe, a UTF-8 text file."
    )


def test_not_toml(tmp_path: Path) -> None:
    advice = "Write key = value, text in quotes, each key once."
    assert message(tmp_path, HEAD + "x = many\n") == f"mine.toml:4: Invalid value (at line 4, column 5). {advice}"
    assert message(tmp_path, HEAD + 'x = "a') == f"mine.toml: Unterminated string (at end of document). {advice}"


def test_extends_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "mine.toml"')
    expected = "a.toml: extends goes round in a circle (mine.toml → a.toml → mine.toml). Take one of them out."
    assert message(tmp_path, 'extends = "a.toml"\n') == expected


def test_an_error_names_the_file_that_was_written_wrongly(tmp_path: Path) -> None:
    (tmp_path / "paper.toml").write_text(HEAD + '[sft]\nbatch_size = "many"\nlearning_rate = 1.0\n')
    expected = 'paper.toml: [sft] batch_size is "many", a whole number was expected.'
    assert message(tmp_path, 'extends = "paper.toml"\n[sft]\nlearning_rate = 2.0\n') == expected
    expected = 'mine.toml: [sft] batch_size is "few", a whole number was expected.'
    assert message(tmp_path, 'extends = "paper.toml"\n[sft]\nbatch_size = "few"\n') == expected


def test_a_preset_changes_defaults_and_what_is_written_stands(tmp_path: Path) -> None:
    found = made(tmp_path, HEAD + '[rlvr]\npreset = "high"\ntemperature = { start = 0.95 }\n').of("rlvr", Rlvr)
    assert (found.clip_high, found.temperature) == (0.28, Anneal(0.95, 0.9))
    found = made(tmp_path, HEAD + '[rlvr]\npreset = "high"\nclip_high = 0.1\n', ("rlvr.temperature.end=0.5",))
    assert found.of("rlvr", Rlvr).clip_high == 0.1 and found.of("rlvr", Rlvr).temperature == Anneal(1.0, 0.5)
    (tmp_path / "again.toml").write_text(found.dumps())
    assert recipe.read(tmp_path / "again.toml", SECTIONS) == found
    with pytest.raises(RecipeError, match=r'preset is "hi", one of "plain", "high" was expected'):
        made(tmp_path, HEAD + '[rlvr]\npreset = "hi"\n')
