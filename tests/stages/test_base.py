"""The toy's base model: what its corpus holds, and what it must not."""

from __future__ import annotations

from algorist import store
from algorist.records import Problem, Sample


def test_the_base_model_has_not_seen_the_questions_of_the_benchmarks(command, tmp_path):
    """In a world of one step and no distractors, some made-up problems are bound to be held-out ones."""
    recipe, run = tmp_path / "few.toml", tmp_path / "run"
    recipe.write_text(
        'name = "few"\n[model]\nprompt = "{problem}"\n'
        "[toy]\nproblems = 10\nheld_out = 400\nfewest_steps = 1\nmost_steps = 1\ndistractors = 0\n"
        "[data]\nngram = 40\n"
        "[base]\nhidden_size = 16\nnum_layers = 1\nnum_heads = 2\nmlp_size = 16\n"
        "equation_lines = 1\ndiaries = 1\nbare_answers = 300\nmost_steps = 1\nbatch_size = 64\n",
        encoding="utf-8",
    )
    status, _, err = command("run", recipe, "--out", run, "--until", "base")
    assert status == 0, err
    held_out = {problem.id for problem in store.read(run / "benchmarks" / "toy", Problem)}
    manifest = store.manifest(run / "base" / "data")
    corpus = {sample.problem_id for sample in store.read(run / "base" / "data", Sample)}
    assert manifest.dropped["in a benchmark"] > 0 and corpus.isdisjoint(held_out)
    assert f"(left out: {manifest.dropped['in a benchmark']} in a benchmark)" in err
    assert manifest.rows == 302 - manifest.dropped["in a benchmark"]
