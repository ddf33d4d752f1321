"""What goes wrong at a user's desk, word for word, through the real command line: one line and an exit status."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from algorist import cli, store
from algorist.records import Problem, Verdict

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "recipes" / "smoke.toml"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def refused(command, tmp_path):
    """`refused(...)` → (exit status, the last line of stderr) of `algorist run <recipe> --out <tmp_path>/run ...`."""

    def call(*words: object, recipe: Path = SMOKE, out: Path = tmp_path / "run") -> tuple[int, str]:
        status, printed, err = command("run", recipe, "--out", out, *words)
        assert printed == "" and "Traceback" not in err
        return status, err.rstrip("\n").splitlines()[-1]

    return call


def test_recipes(refused, tmp_path):
    mine = tmp_path / "mine.toml"
    assert refused(recipe=mine) == (
        2,
        f"{mine}: there is no such recipe. There are no others in this folder either.",
    )
    mine.write_text('name = "mine"\n[rlvr]\ntemprature = 1.0\n')
    assert refused(recipe=mine) == (
        2,
        f"{mine}: [rlvr] temprature is not a key of this section. Did you mean temperature?",
    )
    mine.write_text('name = "mine"\n[sft]\nbatch_size = "many"\n')
    assert refused(recipe=mine) == (2, f'{mine}: [sft] batch_size is "many", a whole number was expected.')
    mine.write_text('name = "mine"\n[sft]\nbatch_size = 0\n')
    assert refused(recipe=mine) == (
        2,
        f"{mine}: [sft] batch_size, tokens_per_batch and save_every must be at least 1.",
    )
    assert refused("--set", "sft.epoch=2") == (
        2,
        "--set sft.epoch=2: [sft] epoch is not a key of this section. Did you mean epochs?",
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "section", "why"),
    [
        ("rlvr.max_tokens=0", "rlvr", "max_tokens = 0 leaves no room for a response"),
        (
            "rlvr.temperature.start=-1.0",
            "rlvr",
            "temperature: temperature must stay above 0: a group of equal responses teaches nothing.",
        ),
        (
            "rlvr.temperature.end=0.0",
            "rlvr",
            "temperature: temperature must stay above 0: a group of equal responses teaches nothing.",
        ),
        ("rlvr.engine.num_slots=0", "rlvr", "engine: num_slots and issue must be at least 1."),
        ("rlvr.temperature.over=1.5", "rlvr", "temperature: over = 1.5 is a share of the steps, 0 to 1 was expected."),
        (
            'rlvr.engine={ahead=true,device="foo"}',
            "rlvr",
            'engine: device = "foo" is none that torch knows, such as "cuda:1".',
        ),
        (
            "rlvr.max_prompt_accuracy=0.0",
            "rlvr",
            "max_prompt_accuracy is a share above 0 and up to 1: no prompt would be learned from.",
        ),
        (
            "rlvr.prompts.max_accuracy=50.0",
            "rlvr",
            "prompts: min_accuracy and max_accuracy are shares, 0 to 1, and the first is not above the second.",
        ),
        ("rlvr.health.max_flat=80.0", "rlvr", "health: max_flat = 80.0 is a share, 0 to 1 was expected."),
        ("rlvr.reward.right=inf", "rlvr", "reward: right must be worth more than wrong, and both be finite."),
        ("rlvr.learning_rate=inf", "rlvr", "learning_rate = inf is no step that a weight could take."),
        (
            "rlvr.end_learning_rate=-1.0",
            "rlvr",
            "end_learning_rate = -1.0 is a share of the peak, 0 to 1 was expected.",
        ),
        ("rlvr.weight_decay=-1.0", "rlvr", "weight_decay = -1.0 is negative, 0 or more was expected."),
        ("rlvr.refills=-1", "rlvr", "refills, oversample and enough_right must not be negative."),
        ("rlvr.critic.lam=1.1", "rlvr", "critic: gamma and lam are shares, 0 to 1 was expected."),
        ("rlvr.critic.clip=-0.2", "rlvr", "critic: weight and clip must be above 0, and warmup not negative."),
        ("rlvr.engine.memory=1.0", "rlvr", "engine: memory is a share, above 0 and below 1."),
        ("rlvr.prompts.rounds=0", "rlvr", "prompts: candidates, rounds, samples and levels must be at least 1."),
        (
            "rlvr.objective.clip_low=0.0",
            "rlvr",
            "objective: clip_low and clip_high must be above 0: nothing would be learned.",
        ),
        ("rlvr.objective.kl=-0.1", "rlvr", "objective: kl and entropy are weights, at least 0."),
        ("rlvr.objective.dual_clip=0.5", "rlvr", "objective: dual_clip must be above 1, or 0 for none."),
        (
            "rlvr.objective.correction_high=0.5",
            "rlvr",
            "objective: correction_low must lie in [0, 1) and correction_high above 1.",
        ),
        ("rlvr.reward.right=-1.0", "rlvr", "reward: right must be worth more than wrong, and both be finite."),
        ("rlvr.reward.overlong=2.0", "rlvr", "reward: overlong is a share of max_tokens, 0 to 1."),
        ("rlvr.reward.repetition=-1.0", "rlvr", "reward: repetition and length_weight are costs, at least 0."),
        ("teacher.top_p=0.0", "teacher", "top_p = 0.0 does not lie in (0, 1]"),
        ("teacher.temperature=-1.0", "teacher", "temperature = -1.0 is negative, 0 or more was expected"),
        ("evaluate.num_slots=0", "evaluate", "num_slots must be at least 1."),
        ("toy.distractors=-1", "toy", "distractors = -1, 0 to 7 was expected: a year has twelve months."),
        ("toy.distractors=8", "toy", "distractors = 8, 0 to 7 was expected: a year has twelve months."),
        ("toy.held_out=0", "toy", "problems and held_out must be at least 1."),
        ("base.most_steps=9", "base", "most_steps lies in 1..8."),
        ("base.num_heads=0", "base", "num_heads must be even, above 0 and divide hidden_size."),
        (
            "dpo.max_grad_norm=0.0",
            "dpo",
            "learning_rate, max_grad_norm and others_rate must be above 0: nothing would be learned.",
        ),
        (
            "sft.learning_rate=0.0",
            "sft",
            "learning_rate, max_grad_norm and others_rate must be above 0: nothing would be learned.",
        ),
        (
            'teacher.url="http://127.0.0.1:80o0/v1"',
            "teacher",
            'url = "http://127.0.0.1:80o0/v1" is no address: http://…, https://… or toy://teacher was expected.',
        ),
        (
            'teacher.url="localhost:8000"',
            "teacher",
            'url = "localhost:8000" is no address: http://…, https://… or toy://teacher was expected.',
        ),
    ],
)
def test_values_that_no_stage_can_use(refused, tmp_path, override, section, why):
    """Said before the first task, not after hours."""
    assert refused("--set", override) == (2, f"{SMOKE} with --set {override}: [{section}] {why}")
    assert not (tmp_path / "run").exists()


def test_stages_that_are_unknown_or_named_twice(refused, tmp_path):
    known = "Known here: midtrain, sft, dpo, rlvr."
    assert refused("--set", 'stages=["sft","ppo"]') == (2, f'{SMOKE}: stages has "ppo". {known}')
    twice = f"{SMOKE}: stages names one twice. A run has one folder for each."
    assert refused("--set", 'stages=["sft","sft"]') == (2, twice)
    assert not (tmp_path / "run").exists()


def test_samples_of_an_unknown_benchmark(refused):
    why = "[evaluate] samples.aime is of no benchmark. Known here: toy."
    assert refused("--set", "evaluate.samples.aime=8") == (2, f"{SMOKE}: {why}")


def test_more_problems_than_there_are(refused):
    few = ("--set", "toy.most_steps=1", "--set", "toy.distractors=0", "--set", "toy.held_out=3000")
    status, line = refused(*few, "--until", "benchmarks")
    assert status == 2 and line.startswith("[toy]: 3,000 different problems were wanted, ")
    assert line.endswith(" were found. Ask for fewer, for more steps, or for more distractors.")


def test_a_place_that_cannot_be_written(command, smoke_run, tmp_path):
    """Root may write everywhere, so a folder stands where the file belongs."""
    run = shutil.copytree(smoke_run, tmp_path / "run")
    (run / "report.md").unlink()
    (run / "report.md").mkdir()
    status, _, err = command("report", run)
    expected = f"{run / 'report.md'}: Is a directory. Mend its permissions or name another place.\n"
    assert (status, err) == (4, expected)


def test_damaged_records(command, refused, tmp_path):
    run = tmp_path / "run"
    assert refused("--until", "problems")[0] == 0
    shard, manifest = run / "problems" / "00000.parquet", run / "problems" / "manifest.json"
    store.write_shard(run / "problems", 0, Verdict, [Verdict("r", True, "equal", "1", "test")])
    status, _, err = command("show", run, "problems")
    assert status == 3 and err.startswith(f"{shard}: holds no Problem records (") and "Traceback" not in err
    manifest.write_text("{}")
    status, _, err = command("show", run, "problems")
    assert (status, err) == (3, f"{manifest}: is no manifest. Delete the task's folder to make it again.\n")


def test_a_file_in_the_place_of_the_run(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    why = "cannot be a run's folder (File exists). Name another --out."
    assert refused(out=tmp_path / "file") == (4, f"{tmp_path / 'file'}: {why}")


def test_an_unknown_task(refused, tmp_path):
    known = "benchmarks, sources, problems, rollouts, verdicts, measures, profiles, sets/midtrain, sets/sft, sets/dpo, "
    known += "sets/rlvr, base, scores/base, midtrain, scores/midtrain, sft, scores/sft, "
    assert refused("--until", "stf") == (
        4,
        f"--until stf: there is no such task. Known here: {known}dpo, scores/dpo, rlvr, scores/rlvr.",
    )
    assert not (tmp_path / "run").exists()


def test_problem_files(refused, tmp_path):
    path = tmp_path / "p.jsonl"
    named = ("--until", "problems", "--set", f'data.problems=["{path}"]')
    assert refused(*named) == (
        2,
        f"{path}: there is no such file. Check the path; a relative one starts where the command is run.",
    )
    path.write_text('{"question": "1 + 1?", "answer": "2"}\n{"question": "1 +\n')
    assert refused(*named) == (
        3,
        f"{path}:2: not a JSON object (Invalid control character at, column 18). Mend or delete the line.",
    )
    path.write_text('{"frage": "1 + 1?", "answer": "2"}\n')
    assert refused(*named) == (
        3,
        f"{path}: no column holds the statement; found answer, frage, expected statement or question or problem or "
        'prompt. Map another one: columns = { statement = "<column>" }.',
    )
    path.write_text('{"question": "1 + 1?", "answer": "2"}\n')
    assert refused(*named, "--set", f'data.benchmarks.own="{path}"') == (
        2,
        "[data] problems: none of 1 is left (1 in own). Name other files.",
    )


def test_model_folders(refused, smoke_run, tmp_path):
    model = tmp_path / "model"
    data = ("--set", "toy.problems=4", "--until", "base", "--set", f'model.base="{model}"')
    shutil.copytree(smoke_run / "base" / "checkpoint", model)
    tokenizer = (model / "tokenizer.json").read_bytes()
    (model / "tokenizer.json").unlink()
    assert refused(*data) == (
        2,
        f"{model}: this model folder has no tokenizer (tokenizer.json). "
        "Save the tokenizer beside the weights with tokenizer.save_pretrained.",
    )
    assert not (tmp_path / "run" / "rollouts").exists()  # it was looked at before the teacher was asked
    (model / "tokenizer.json").write_bytes(tokenizer)
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").unlink()
    assert refused(*data) == (
        2,
        f"{model}: the tokenizer has no chat template. Add chat_template.jinja to the folder.",
    )
    (model / "chat_template.jinja").write_text(template)
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(json.dumps(json.loads(config) | {"sliding_window": 16}))
    (model / "checkpoint.json").unlink()  # as any folder that is no checkpoint of ours
    longest = json.loads(config)["max_position_embeddings"]
    assert refused(*data) == (
        2,
        f'[model] base = "{model}": Phi3ForCausalLM has layers that see only the last 16 of up to {longest} tokens, '
        "and windows are not computed here. Take a model of a family without them; known to be exact: Llama, OLMo 2, "
        "Phi-3 and Phi-4, Qwen2 and 2.5, Qwen3, SmolLM3.",
    )
    (model / "config.json").write_text(config)
    (model / "model.safetensors").write_bytes(b"")
    status, line = refused(*data)
    assert status == 2
    assert line.startswith(f'[model] base = "{model}": no model could be loaded (')
    assert line.endswith("). Name a folder or a hub model.")
    assert refused(*data, "--set", 'model.prompt="Think."') == (
        2,
        '[model] prompt = "Think." has no place for the problem. Write {problem} where it goes.',
    )


def test_run_folders(refused, tmp_path):
    other = tmp_path / "run"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    assert refused("--until", "benchmarks") == (
        4,
        f"{other}: is not empty and holds no recipe.toml, so it is no run. Name another folder with --out.",
    )
    (other / "notes.txt").unlink()
    assert refused("--until", "benchmarks")[0] == 0
    assert refused("--until", "benchmarks", "--set", "name=other") == (
        4,
        f'{other}: holds a run of the recipe "smoke", not of "other". '
        "Name another folder with --out, or delete this one.",
    )
    with open(other / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert refused("--until", "benchmarks") == (
            4,
            f"{other}: another algorist works in this folder. Wait for it, or name another --out.",
        )


def test_a_full_disk_keeps_what_is_finished(tmp_path):
    """On a small file system that is really full; with space the same command goes on to its end."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1600k", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        folder = disk / "run"
        words = [sys.executable, "-m", "algorist", "run", str(SMOKE), "--out", str(folder), "--until", "verdicts"]
        words += ["--set", "toy.problems=1200"]
        done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
        last = done.stderr.splitlines()[-1]
        assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (4, "", False)
        what = "the disk is full. Free some space and run the same command again; what is finished is kept."
        assert last.startswith(f"{folder}/") and last.endswith(f": {what}")
        assert len(store.read(folder / "problems", Problem)) == 1200
        finished = {path: path.stat().st_mtime_ns for path in folder.glob("problems/*.parquet")}
        assert finished and not list(folder.rglob(".*.draft"))
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "")
        assert "problems: done before, skipped" in done.stderr
        assert all(path.stat().st_mtime_ns == then for path, then in finished.items())
        assert len(store.read(folder / "verdicts", Verdict)) == 4800
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_ctrl_c_while_the_run_works(tmp_path):
    """A real signal to a real process: one line, status 130, and the same command goes on to the end."""
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "algorist", "run", str(SMOKE), "--out", str(folder), "--until", "rollouts"]
    words += ["--set", "toy.problems=4000"]
    # A shell that starts the tests in the background has them ignore Ctrl-C, and children inherit that.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    give_up = time.monotonic() + 60
    while not list(folder.glob("rollouts/*.parquet")):
        assert time.monotonic() < give_up and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == cli.STOPPED and "Traceback" not in err
    mark = json.loads((folder / "rollouts" / "task.json").read_text())
    assert mark["done"] is False and list(folder.glob("rollouts/*.parquet"))
