"""The verbs: read the recipe, pick the pieces, call one function. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
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
    text = pipeline.run(settings, out or Path("runs") / settings.name, say=_say, until=until)
    if text is not None:
        typer.echo(text)


@app.command()
def check(recipe: RecipePath, out: Out = None, set_: Overrides = None) -> None:
    """Print the resolved recipe and the state of its run, and do nothing.

    Example: algorist check recipes/tiny.toml --set sft.epochs=3
    """
    from algorist import pipeline, tasks
    from algorist import recipe as recipes

    settings = recipes.read(recipe, tasks.sections(), set_ or [])
    typer.echo(settings.dumps())
    for task, state in pipeline.state(settings, out or Path("runs") / settings.name):
        typer.echo(f"{task:20} {state}")


@app.command()
def report(run: RunFolder) -> None:
    """Print the table of a finished run, made again from its stored rollouts, and write it to the run's folder.

    Example: algorist report runs/tiny
    """
    from algorist import pipeline

    typer.echo(pipeline.write_report(_recipe_of(run), run))


@app.command()
def gather(
    out: Annotated[Path, typer.Option(help="The folder to write; an interrupted gather goes on in it.")],
    problems: Annotated[list[Path] | None, typer.Option(help="A file of problems. May be repeated.")] = None,
    rollouts: Annotated[list[Path] | None, typer.Option(help="A file of rollouts. May be repeated.")] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="An evaluation file; its problems are never trained on. May be repeated.")
    ] = None,
    problem_column: Annotated[list[str] | None, typer.Option(metavar="OURS=THEIRS", help=_MAPPED)] = None,
    rollout_column: Annotated[list[str] | None, typer.Option(metavar="OURS=THEIRS", help=_MAPPED)] = None,
    ngram: Annotated[int, typer.Option(help="Words shared with an evaluation problem that rule a problem out.")] = 13,
) -> None:
    """Turn files of problems and rollouts into judged, decontaminated samples and pairs, and print what became of what.

    Files are .jsonl, .json, .parquet or .csv.
    Example: algorist gather --problems math.jsonl --rollouts r1.jsonl --against math500.jsonl --out data/math
    """
    from algorist.data import gather as gathering
    from algorist.data.funnel import funnel_text

    if not problems and not rollouts:
        raise RecipeError("gather: there is nothing to gather. Name files with --problems or --rollouts.")
    settings = gathering.Settings(
        ngram, problem_columns=_columns(problem_column), rollout_columns=_columns(rollout_column)
    )
    with _verdict_bar() as progress:
        found = gathering.gather(
            problems or [], rollouts or [], out, against=against or [], settings=settings, progress=progress
        )
    typer.echo(funnel_text(found))


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
        typer.Option(metavar="RUN", help="Instead of pairs: judge a run's or gather's rollouts again, change nothing."),
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
    gathered = (recheck / "gather.json").exists()
    recipe = review.gathered(recheck, set_ or []) if gathered else _recipe_of(recheck, set_ or [])
    typer.echo(review.recheck(recheck, recipe, out, workers))


@app.command()
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run or of a gather.")],
    what: Annotated[str, typer.Argument(help="problems, rollouts, pair, batch or funnel; else an overview.")] = "",
    id_: Annotated[str, typer.Option("--id", help="A record's id, or how it begins; alone, the record's story.")] = "",
    count: Annotated[int | None, typer.Option(min=1, help="How many to show.")] = None,
    stage: Annotated[str, typer.Option(help="Whose batch: base, midtrain, sft, dpo or rlvr.")] = "sft",
    step: Annotated[int | None, typer.Option(min=0, help="Which step's batch; the first, of rlvr the last.")] = None,
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
    recipe, states = None, []
    if not (run / "gather.json").exists():
        from algorist import pipeline

        recipe = _recipe_of(run)
        states = pipeline.state(recipe, run)
    look = shows.Look(run, recipe, states, id_, count, stage, step)
    if disagreements:
        settings = recipe.of("judge", judge.Settings) if recipe else judge.Settings()
        review.show_disagreements(run, settings, id_, count, look.say)
    else:
        shows.show(look, what)


def _recipe_of(run: Path, overrides: Sequence[str] = ()) -> Recipe:
    from algorist import recipe as recipes
    from algorist import tasks

    if not (run / "recipe.toml").exists():
        raise RunError(f"{run}: is no run (there is no recipe.toml). Name the folder that algorist run wrote.")
    return recipes.read(run / "recipe.toml", tasks.sections(), overrides)


def _columns(pairs: list[str] | None) -> dict[str, str]:
    """Our column names → the files'."""
    for text in pairs or []:
        if "=" not in text:
            raise RecipeError(f"gather: {text} maps no column. Write our name=the file's name, such as answer=gold.")
    return dict(text.split("=", 1) for text in pairs or [])


@contextlib.contextmanager
def _verdict_bar() -> Iterator[Callable[[int, int], None]]:
    """(done, all) shown as progress; nothing is shown before the first call."""
    from algorist import journal

    with contextlib.ExitStack() as stack:
        bars: list[Callable[..., None]] = []
        before = 0

        def show(done: int, total: int) -> None:
            nonlocal before
            if not bars:
                bars.append(stack.enter_context(journal.progress("verify", total)))
            bars[0](done - before)
            before = done

        yield show


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
