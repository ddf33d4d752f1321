"""The verbs, as a user types them: what goes to stdout, what to stderr, and the exit status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import algorist
from algorist import cli, store
from algorist.records import Problem, Rollout

ROOT = Path(__file__).parents[1]
VERBS = ("run", "check", "report", "gather", "show")


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


def test_help_is_fast_and_needs_no_torch():
    verb = "import sys\nfrom algorist import cli\n"
    code = verb + "try: cli.app(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    took = []
    for _ in range(3):
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        took.append(time.monotonic() - started)
        assert done.stdout.splitlines()[-1] == "False"
    assert min(took) < 0.5


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


def test_gather_prints_funnel_and_agreement(command, tmp_path):
    problems = write_lines(
        tmp_path / "p.jsonl", {"question": "What is 2 + 2?", "answer": "4"}, {"question": "9 + 9?", "answer": "18"}
    )
    rollouts = write_lines(
        tmp_path / "r.jsonl",
        {"question": "What is 2 + 2?", "gold": "4", "completion": "A: 4", "correct": True},
        {"question": "What is 2 + 2?", "gold": "4", "completion": "A: 5", "correct": True},
        {"question": "9 + 9?", "gold": "18", "completion": "A: 18"},
    )
    exam = write_lines(tmp_path / "exam.jsonl", {"question": "9 + 9?", "answer": "18"})
    out = tmp_path / "out"
    words = ("gather", "--problems", problems, "--rollouts", rollouts, "--against", exam, "--out", out)
    status, text, err = command(*words)
    assert status == 0
    assert text == (out / "funnel.txt").read_text(encoding="utf-8") + "\n"
    assert "samples 1\npairs   1 (rejected side: different 1)\n" in text
    assert "    in exam" in text and "all together" in text
    assert err == "verify: 3/3, took 0s\n"
    assert len(store.read(out / "problems", Problem)) == 1 and len(store.read(out / "rollouts", Rollout)) == 3
    again = command(*words)
    assert again[:2] == (0, text)
    shown = command("show", out, "pair")[1]
    assert "no reference yet" in shown and "│ A: 4 " in shown and "│ A: 5 " in shown
    status, overview, _ = command("show", out)
    assert overview.startswith(text.rstrip()) and overview.endswith(
        f"More: algorist show {out} problems|rollouts|pair|funnel, or --id with the id of any record.\n"
    )
    assert command("show", out, "batch")[::2] == (4, f"{out}: a gather has no batches. Name the folder of a run.\n")
    chosen = json.loads((out / "pairs.jsonl").read_text())["chosen_id"]
    assert "samples.jsonl:1 " in (story := command("show", out, "--id", chosen)[1]) and "pairs.jsonl:1 " in story


def test_gather_maps_columns(command, tmp_path):
    problems = write_lines(tmp_path / "p.jsonl", {"Frage": "1 + 1?", "Antwort": "2"})
    words = ("gather", "--problems", problems, "--out", tmp_path / "out")
    mapping = ("--problem-column", "statement=Frage", "--problem-column", "answer=Antwort")
    assert command(*words, *mapping)[0] == 0
    assert store.read(tmp_path / "out" / "problems", Problem)[0].answer == "2"
    status, _, err = command(*words, "--problem-column", "Frage")
    assert (status, err) == (
        2,
        "gather: Frage maps no column. Write our name=the file's name, such as answer=gold.\n",
    )


def test_exit_statuses(command, tmp_path):
    """2: what was asked for cannot be; 3: a record cannot be read; 4: a run cannot go on."""
    assert command("gather", "--out", tmp_path / "out")[::2] == (
        2,
        "gather: there is nothing to gather. Name files with --problems or --rollouts.\n",
    )
    (tmp_path / "broken.jsonl").write_text('{"question": \n')
    assert command("gather", "--problems", tmp_path / "broken.jsonl", "--out", tmp_path / "out2")[0] == 3
    assert command("report", tmp_path)[0] == 4
    assert command("rn")[0] == 2


def test_ctrl_c_is_one_line(command, monkeypatch, tmp_path):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("algorist.pipeline.run", interrupted)
    status, out, err = command("run", ROOT / "recipes" / "smoke.toml", "--out", tmp_path / "run")
    assert (status, out, err) == (130, "", cli.STOPPED + "\n")
    assert cli.STOPPED == "Stopped. What is finished is kept; the same command goes on from there."
