"""Which tasks a recipe has, and a run of some of the stages only."""

from __future__ import annotations

import shutil
from pathlib import Path

from algorist import recipe as recipes
from algorist import store
from algorist.data import sets
from algorist.records import CARD
from algorist.stages import STAGES
from algorist.tasks import sections, tasks

SMOKE = Path(__file__).parents[1] / "recipes" / "smoke.toml"


def named(*overrides: str) -> dict[str, tuple[str, ...]]:
    """task → what it needs, of the tasks from the sets on."""
    found = {task.name: task.needs for task in tasks(recipes.read(SMOKE, sections(), overrides))}
    return dict(list(found.items())[list(found).index("profiles") + 1 :])


def test_every_stage_has_its_set() -> None:
    assert tuple(stage.name for stage in STAGES) == sets.SETS


def test_all_stages_run_unless_some_are_named() -> None:
    alone, every = named('stages=["rlvr"]'), named()
    assert list(alone) == ["sets/rlvr", "base", "scores/base", "rlvr", "scores/rlvr"]
    assert alone["rlvr"] == ("sets/rlvr", "base")
    assert every == named('stages=["midtrain","sft","dpo","rlvr"]') and every["rlvr"] == ("sets/rlvr", "dpo")
    assert list(named("stages=[]")) == ["base", "scores/base"]


def test_stages_run_in_the_order_in_which_they_are_named() -> None:
    found = named('stages=["rlvr","sft"]')
    assert (found["rlvr"], found["sft"]) == (("sets/rlvr", "base"), ("sets/sft", "rlvr"))


def test_a_set_that_is_only_left_out_is_made_too() -> None:
    found = named('stages=["rlvr"]', 'curate.rlvr.disjoint_from=["sft"]')
    assert "sets/sft" in found and "sets/sft" in found["sets/rlvr"] and "sft" not in found


def test_a_run_of_two_stages(command, smoke_run: Path, tmp_path: Path) -> None:
    """What other stages made stays where it is; the report, `show` and `replay` know only those that were named."""
    run = shutil.copytree(smoke_run, tmp_path / "run")
    status, text, err = command("run", SMOKE, "--out", run, "--set", 'stages=["midtrain","rlvr"]')
    assert status == 0, err
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert [row for row in rows if "-" not in row] == ["stage", "base", "midtrain", "rlvr"]
    old, new = (store.read_json(folder / "rlvr" / "checkpoint" / CARD) for folder in (smoke_run, run))
    first = store.read_json(run / "midtrain" / "checkpoint" / CARD)
    assert first["id"] in new["parents"] and first["id"] not in old["parents"]
    assert "midtrain: done before, skipped" in err and (run / "dpo" / "checkpoint" / CARD).exists()
    status, said, err = command("replay", run, "--step", "0")
    assert (status, said.splitlines()[-1]) == (0, "step 0: the same numbers"), err
    assert f"from {run / 'midtrain' / 'checkpoint'}" in said
    assert command("show", run, "batch", "--stage", "rlvr")[0] == 0
    status, _, err = command("show", run, "batch", "--stage", "dpo")
    assert status == 2 and "there is no such stage" in err


def test_replay_of_a_run_without_stage_4(command, smoke_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(smoke_run, tmp_path / "run")
    recipe = run / "recipe.toml"
    recipe.write_text('stages = ["midtrain"]\n' + recipe.read_text(encoding="utf-8"), encoding="utf-8")
    why = f"{run}: stage 4 is none of this run's stages: midtrain.\n"
    assert command("replay", run)[::2] == (4, why)


def test_an_empty_set_stops_the_run_before_the_first_stage(command, smoke_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(smoke_run, tmp_path / "run")
    none_so_easy = ("curate.rlvr.min_pass_rate=0.999", "curate.rlvr.max_pass_rate=0.999")
    changes = ('stages=["midtrain","rlvr"]', "midtrain.learning_rate=0.001", *none_so_easy)
    status, _, err = command("run", SMOKE, "--out", run, *(word for one in changes for word in ("--set", one)))
    said = err.splitlines()[-1]
    assert status == 4 and said.startswith(f"{run / 'sets' / 'rlvr'}: is empty (left out: "), err
    assert said.endswith(", so rlvr would learn nothing. Loosen [curate] rlvr; or leave rlvr out of `stages`.")
    assert not (run / "midtrain" / "checkpoint").exists()  # which was to be made anew


def test_problems_without_a_teacher_are_no_prompts_unless_that_is_wanted(
    command, smoke_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(smoke_run, tmp_path / "run")
    given = ("run", SMOKE, "--out", run, "--set", 'stages=["rlvr"]', "--set", 'teacher.url=""')
    status, _, err = command(*given)
    assert (status, err.splitlines()[-1]) == (
        4,
        f"{run / 'sets' / 'rlvr'}: is empty (left out: 60 no rollouts), so rlvr would learn nothing. Loosen [curate] "
        "rlvr; rlvr.unmeasured = true keeps problems without rollouts; or leave rlvr out of `stages`.",
    )
    status, _, err = command(*given, "--set", "curate.rlvr.unmeasured=true", "--until", "sets/rlvr")
    assert status == 0 and "sets/rlvr: 60 questions" in err
