"""The verbs: read the recipe, pick the pieces, call one function. Nothing heavy is imported before it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from algorist import __version__
from algorist.errors import AlgoristError

app = typer.Typer(
    help="From a small base model to a mathematics reasoner: data, four stages, scores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
RecipePath = Annotated[Path, typer.Argument(help="A recipe, such as recipes/tiny.toml.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override one key: section.key=value. May be repeated.")]
Out = Annotated[Path | None, typer.Option(help="The run folder; runs/<recipe name> unless given.")]


@app.command()
def run(
    recipe: RecipePath,
    out: Out = None,
    set_: Overrides = None,
    until: Annotated[str | None, typer.Option(help="Stop after this task, such as verdicts or sft.")] = None,
) -> None:
    """Run a recipe to its end, or go on where it stopped, and print the table."""
    from algorist import pipeline
    from algorist import recipe as recipes

    settings = recipes.read(recipe, pipeline.sections(), set_ or [])
    text = pipeline.run(settings, out or Path("runs") / settings.name, say=_say, until=until)
    if text is not None:
        typer.echo(text)


@app.command()
def check(recipe: RecipePath, out: Out = None, set_: Overrides = None) -> None:
    """Print the resolved recipe and the state of its run, and do nothing."""
    from algorist import pipeline
    from algorist import recipe as recipes

    settings = recipes.read(recipe, pipeline.sections(), set_ or [])
    typer.echo(settings.dumps())
    for task, state in pipeline.state(settings, out or Path("runs") / settings.name):
        typer.echo(f"{task:20} {state}")


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"algorist {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def main() -> None:
    """The command `algorist`: an error that a user can mend is one line and an exit status, never a traceback."""
    try:
        app()
    except AlgoristError as error:
        typer.echo(str(error), err=True)
        raise SystemExit(error.exit_status) from None
