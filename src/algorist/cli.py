"""The verbs: read the recipe, pick the pieces, call one function. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from algorist import __version__
from algorist.errors import AlgoristError, RecipeError, RunError

if TYPE_CHECKING:
    from algorist.recipe import Recipe

STOPPED = "Stopped. What is finished is kept; the same command goes on from there."

app = typer.Typer(
    help="From a small base model to a mathematics reasoner: data, four stages, scores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
RecipePath = Annotated[Path, typer.Argument(help="A recipe, such as recipes/tiny.toml.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, such as runs/tiny.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="One key: section.key=value. May be repeated.")]
Out = Annotated[Path | None, typer.Option(help="The run folder; runs/<recipe name> unless given.")]
_MAPPED = "Our name for a column=the files' name, such as answer=gold. May be repeated."


@app.command()
def run(
    recipe: RecipePath,
    out: Out = None,
    set_: Overrides = None,
    until: Annotated[str | None, typer.Option(help="Stop after this task, such as verdicts or sft.")] = None,
) -> None:
    """Run a recipe to its end, or go on where it stopped, and print the table.

    Example: algorist run recipes/tiny.toml --out runs/tiny
    """
    from algorist import pipeline, tasks
    from algorist import recipe as recipes

    settings = recipes.read(recipe, tasks.sections(), set_ or [])
    folder = out or Path("runs") / settings.name
    if pipeline.run(settings, folder, tasks.tasks(settings), say=_say, until=until):
        _say(tasks.peak_memory())
        typer.echo(tasks.write_report(settings, folder))


@app.command()
def gather(
    recipe: RecipePath,
    out: Out = None,
    set_: Overrides = None,
    until: Annotated[str | None, typer.Option(help="Stop after this task, such as problems or verdicts.")] = None,
) -> None:
    """Run the data engine of a recipe alone, from sources to the four sets, and print the funnel. Needs no torch.

    Stopped or killed, the same command goes on from there; `run` trains on what it made.
    Example: algorist gather mine.toml --out runs/mine
    """
    from algorist import pipeline
    from algorist import recipe as recipes
    from algorist.data import funnel, tasks

    settings = recipes.read(recipe, tasks.sections(), set_ or [], others=tasks.NOT_READ)
    folder = out or Path("runs") / settings.name
    pipeline.run(settings, folder, tasks.tasks(settings), say=_say, until=until)
    funnel.write(folder)
    typer.echo(funnel.text_of(folder))


@app.command()
def check(recipe: RecipePath, out: Out = None, set_: Overrides = None) -> None:
    """Print the resolved recipe, the state of its run, and what the doctor finds in its data; change nothing.

    The exit status is 1 where a stage would refuse to begin.
    Example: algorist check recipes/tiny.toml --set sft.epochs=3
    """
    from algorist import pipeline, tasks
    from algorist import recipe as recipes
    from algorist.doctor import examine

    settings = recipes.read(recipe, tasks.sections(), set_ or [])
    folder = out or Path("runs") / settings.name
    typer.echo(settings.dumps())
    for task, state in pipeline.state(settings, folder, tasks.tasks(settings)):
        typer.echo(f"{task:20} {state}")
    found = []
    for seen in examine.reports(settings, folder):
        typer.echo(f"\n{seen}")
        found.append(seen)
    if not found:
        typer.echo(f"\n{examine.NOTHING}")
    if any(seen.refused for seen in found):
        raise typer.Exit(1)


@app.command()
def report(run: RunFolder) -> None:
    """Print the table of a finished run, made again from its stored rollouts, and write it to the run's folder.

    Example: algorist report runs/tiny
    """
    from algorist import tasks

    typer.echo(tasks.write_report(_recipe_of(run), run))


@app.command()
def why(
    identity: Annotated[str, typer.Argument(metavar="ID", help="Of any record or checkpoint, or how it begins.")],
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The folder of a run; every run in runs/ unless given.")
    ] = None,
) -> None:
    """Follow one id back to its rollouts, verdicts, problem and source row, and forward to what trained on it.

    Example: algorist why 5053a99c09b9e9ff --run runs/tiny
    """
    from algorist import trace

    trace.tell([run] if run else trace.runs(Path("runs")), identity, typer.echo)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a hub name, or toy: the scripted teacher.")],
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Its port.")] = 8000,
    precision: Annotated[str, typer.Option(help="Of matrix products: float32 or bfloat16.")] = "float32",
    slots: Annotated[int, typer.Option(min=1, help="Sequences decoded together.")] = 32,
    name: Annotated[str | None, typer.Option(help="The model's name for clients; MODEL unless given.")] = None,
) -> None:
    """Answer the requests of OpenAI's protocol with our own sampler: a teacher for tests and laptops.

    Example: algorist serve runs/tiny/rlvr/checkpoint --port 8001
    """
    from algorist.serving import app

    app.serve(model, host=host, port=port, precision=precision, num_slots=slots, name=name or "")


@app.command()
def verify(
    pairs: Annotated[
        Path | None,
        typer.Argument(metavar="PAIRS", help="A .jsonl of {id, gold, candidate, kind}; stdin unless given."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The .jsonl to write; stdout unless given.")] = None,
    set_: Overrides = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; as many as there are cores, up to 8.")] = None,
    recheck: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Instead of pairs: judge a run's rollouts again, change nothing."),
    ] = None,
) -> None:
    """Judge pairs of answers: {id, equivalent: true, false or null, reason, extracted, seconds} for each line.

    kind is "answer" (a bare answer) or "completion" (a whole model output).
    With --recheck: what the present verifier would decide otherwise; RUN/recheck.jsonl unless --out is given.
    Example: algorist verify pairs.jsonl --out verdicts.jsonl --set verify.percent=false
    """
    if recheck is None:
        from algorist.verify import files

        _say(files.verify_file(pairs, out, set_ or [], workers))
        return
    from algorist import review

    if pairs is not None:
        raise RecipeError(f"verify: both {pairs} and --recheck {recheck} were given. Give one of them.")
    typer.echo(review.recheck(recheck, _recipe_of(recheck, set_ or []), out, workers))


@app.command()
def show(
    run: RunFolder,
    what: Annotated[str, typer.Argument(help="problems, rollouts, pair, batch or funnel; else an overview.")] = "",
    id_: Annotated[str, typer.Option("--id", help="A record's id, or how it begins.")] = "",
    count: Annotated[int | None, typer.Option(min=1, help="How many to show.")] = None,
    stage: Annotated[str, typer.Option(help="Whose batch: base, midtrain, sft, dpo or rlvr.")] = "sft",
    step: Annotated[
        int | None,
        typer.Option(min=0, help="Which step's batch, of rlvr which generation's; the first, of rlvr the last."),
    ] = None,
    disagreements: Annotated[
        bool, typer.Option("--disagreements", help="Verdicts where rules and judge differ.")
    ] = False,
) -> None:
    """Print the records of a run as a person reads them.

    Example: algorist show runs/tiny batch --stage dpo
    """
    from algorist import review
    from algorist import show as shows
    from algorist.verify import judge

    if disagreements and what:
        raise RecipeError(f"show {what} --disagreements: these are two views. Give one of them.")
    recipe = _recipe_of(run)
    if disagreements:
        review.show_disagreements(run, recipe.of("judge", judge.Settings), id_, count, shows.Look(run, recipe).say)
        return
    from algorist import pipeline, tasks

    states = pipeline.state(recipe, run, tasks.tasks(recipe))
    shows.show(shows.Look(run, recipe, states, id_, count, stage, step), what)


@app.command()
def replay(
    run: RunFolder,
    step: Annotated[int | None, typer.Option(min=0, help="The last optimizer step taken; the journal's last.")] = None,
) -> None:
    """Take steps of stage 4 again from the stored rollouts, by the trainer alone, and compare them with the journal.

    The exit status is 1 where a number differs.
    Example: algorist replay runs/tiny --step 0
    """
    from algorist import replay as replays

    if replays.replay(run, _recipe_of(run), step, typer.echo):
        raise typer.Exit(1)


def _recipe_of(run: Path, overrides: Sequence[str] = ()) -> Recipe:
    from algorist import recipe as recipes
    from algorist import tasks

    if not (run / "recipe.toml").exists():
        raise RunError(f"{run}: is no run (there is no recipe.toml). Name the folder that algorist run wrote.")
    return recipes.read(run / "recipe.toml", tasks.sections(), overrides)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"algorist {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The command `algorist`: an error that a user can mend is one line and an exit status, never a traceback."""
    # Threads of torch's CPU kernels spin while they wait for each other. Where another process wants the cores, that
    # makes a small model a hundred times slower; spinning less costs nothing where none does.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        app()
    except AlgoristError as error:
        typer.echo(str(error), err=True)
        raise SystemExit(error.exit_status) from None
    except OSError as error:
        if error.filename is None:
            raise
        where = error.filename2 or error.filename  # of a renaming, the place that was wanted
        typer.echo(f"{where}: {error.strerror}. Mend its permissions or name another place.", err=True)
        raise SystemExit(RunError.exit_status) from None
    except KeyboardInterrupt:
        typer.echo(STOPPED, err=True)
        raise SystemExit(130) from None
    except SystemExit as end:  # typer turns Ctrl-C into this status and says nothing
        if end.code == 130:
            typer.echo(STOPPED, err=True)
        raise
