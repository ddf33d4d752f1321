"""The verbs, as a user types them: what goes to stdout, what to stderr, and the exit status."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import algorist
from algorist import cli, store
from algorist.records import Preference, Problem, Rollout

ROOT = Path(__file__).parents[1]
VERBS = ("run", "check", "report", "gather", "verify", "show", "why", "serve")


def write_lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_version_and_help(command):
    assert command("--version") == (0, f"algorist {algorist.__version__}\n", "")
    status, out, _ = command("--help")
    assert status == 0 and all(f" {verb} " in out for verb in VERBS)


def test_each_verb_has_an_example_in_its_help(command):
    for verb in VERBS:
        status, out, _ = command(verb, "--help")
        assert status == 0 and f"Example: algorist {verb} " in out


def test_a_run_prints_its_table_and_report_prints_it_again(command, smoke_run, tmp_path):
    first = (smoke_run / "stdout.txt").read_text(encoding="utf-8")
    assert first.startswith("# smoke\n\n**toy**: 8 problems, 1 samples each\n")
    copy = tmp_path / "copy"
    shutil.copytree(smoke_run, copy)
    for name in ("report.md", "scores.json"):
        (copy / name).unlink()
    status, out, err = command("report", copy)
    assert (status, out, err) == (0, first, "")
    for name in ("report.md", "scores.json"):
        assert (copy / name).read_bytes() == (smoke_run / name).read_bytes()


def test_report_of_an_unfinished_run(command, smoke_run, tmp_path):
    shutil.copytree(smoke_run, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "dpo")
    status, out, err = command("report", tmp_path / "copy")
    expected = f"{tmp_path / 'copy'}: dpo is not done, so there is no table yet. Run the recipe to its end first.\n"
    assert (status, out, err) == (4, "", expected)


def test_check_prints_the_recipe_and_does_nothing(command, tmp_path):
    status, out, _ = command("check", ROOT / "recipes" / "smoke.toml", "--out", tmp_path / "run", "--set", "seed=5")
    assert status == 0
    assert out.startswith('name = "smoke"\nseed = 5\n')
    assert "\nverdicts             to do\n" in out
    assert not (tmp_path / "run").exists()


MINE = """name = "mine"
[data]
problems = ["{problems}", "{rollouts}"]
benchmarks = {{ exam = "{exam}" }}
[teacher]
url = ""
[curate.dpo]
levels = []
max_pass_rate = 1.0
max_length_ratio = 9.0
balance_lengths = false
max_auc = 1.0
[curate.sft]
levels = []
"""


def gathered(command, folder: Path) -> tuple[int, str, str]:
    """`algorist gather` of two problems, one of them in the exam, and of three traces."""
    problems = write_lines(
        folder / "p.jsonl", {"question": "What is 2 + 2?", "answer": "4"}, {"question": "9 + 9?", "answer": "18"}
    )
    rollouts = write_lines(
        folder / "r.jsonl",
        {"question": "What is 2 + 2?", "gold": "4", "completion": "A: 4", "correct": True},
        {"question": "What is 2 + 2?", "gold": "4", "completion": "A: 5", "correct": True},
        {"question": "9 + 9?", "gold": "18", "completion": "A: 18"},
    )
    exam = write_lines(folder / "exam.jsonl", {"question": "9 + 9?", "answer": "18"})
    recipe = folder / "mine.toml"
    recipe.write_text(MINE.format(problems=problems, rollouts=rollouts, exam=exam))
    return command("gather", recipe, "--out", folder / "out")


def test_gather_prints_funnel_and_agreement(command, tmp_path):
    status, text, err = gathered(command, tmp_path)
    out = tmp_path / "out"
    assert status == 0, err
    assert text == (out / "funnel.txt").read_text(encoding="utf-8") + "\n"
    assert re.search(r"^    in exam +1$", text, re.M) and re.search(r"^judged right +2 +1 +1$", text, re.M)
    assert re.search(r"/r.jsonl +2 +1 +50.0 % +0 +1 +0$", text, re.M), text
    assert (out / "funnel.svg").read_text(encoding="utf-8").startswith("<svg ")
    assert len(store.read(out / "problems", Problem)) == 1 and len(store.read(out / "rollouts", Rollout)) == 2
    status, again, err = gathered(command, tmp_path)
    assert (status, again) == (0, text) and err.count("done before, skipped") == 11
    shown = command("show", out, "pair")[1]
    assert "no reference yet" in shown and "│ A: 4 " in shown and "│ A: 5 " in shown
    pair = store.read(out / "sets" / "dpo", Preference)[0]
    status, story, err = command("why", pair.chosen_id[:12], "--run", out)
    assert status == 0, err
    places = [line[2:].split()[0] for line in story.splitlines()[1:]]
    assert list(dict.fromkeys(places)) == [
        "problems/left-out",  # the same statement in the other source
        *("sources/problems", "problems", "profiles", "sources/traces", "rollouts", "measures", "verdicts"),
        *("sets/midtrain", "sets/sft", "sets/dpo"),
    ]
    assert f"row 0 of {tmp_path / 'r.jsonl'}" in story


def test_gather_needs_no_torch_and_run_goes_on_from_it(tmp_path):
    code = """
import sys
sys.modules["torch"] = None
from algorist.cli import main
sys.argv[0] = "algorist"
main()
"""
    recipe = ROOT / "recipes" / "smoke.toml"
    words = [str(recipe), "--out", str(tmp_path / "run"), "--set", "toy.problems=12"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code, "gather", *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "examples chosen" in done.stdout
    onward = [sys.executable, "-m", "algorist", "run", *words, "--until", "sets/rlvr"]
    done = subprocess.run(onward, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(": done before, skipped\n") == 11 and "changed:" not in done.stderr


def test_exit_statuses(command, tmp_path):
    """2: what was asked for cannot be; 3: a record cannot be read; 4: a run cannot go on."""
    assert command("gather", tmp_path / "none.toml")[0] == 2
    (tmp_path / "broken.jsonl").write_text('{"question": \n')
    broken = f'data.problems=["{tmp_path / "broken.jsonl"}"]'
    assert command("gather", ROOT / "recipes" / "smoke.toml", "--set", broken, "--out", tmp_path / "out2")[0] == 3
    assert command("report", tmp_path)[0] == 4
    assert command("rn")[0] == 2


def test_ctrl_c_is_one_line(command, monkeypatch, tmp_path):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("algorist.pipeline.run", interrupted)
    status, out, err = command("run", ROOT / "recipes" / "smoke.toml", "--out", tmp_path / "run")
    assert (status, out, err) == (130, "", cli.STOPPED + "\n")
    assert cli.STOPPED == "Stopped. What is finished is kept; the same command goes on from there."
