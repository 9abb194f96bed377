"""The commands, and how their errors are told: one line that says what was wrong, one that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from callboard.cli import store
from callboard.demo.run import SCRIPTED, Options, run_demo
from callboard.demo.worker import System
from callboard_protocol._version import __version__
from callboard_protocol.errors import CallboardError

BROKEN_PROMISE = 1
CANNOT = 2
INTERRUPTED = 130

app = typer.Typer(
    name="callboard",
    help="Callboard: an embeddable actor runtime for durable LLM agent runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(store.app, name="store")


@app.command()
def version() -> None:
    """Print the installed version."""
    typer.echo(f"callboard {__version__}")


@app.command()
def demo(
    *,
    sessions: Annotated[
        int | None, typer.Option(help="How many modules to audit, one session each.", show_default="all of them")
    ] = None,
    path: Annotated[
        Path | None,
        typer.Option(help="Audit the Python files under this directory.", show_default="the standard library"),
    ] = None,
    crash: Annotated[bool, typer.Option("--crash/--no-crash", help="Kill the worker on schedule.")] = True,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Leave the kills to you: prints the worker's pid.")
    ] = False,
    model: Annotated[str, typer.Option(help="The model, as provider:name.")] = SCRIPTED,
    out: Annotated[Path, typer.Option(help="Where the report, the data and the logs go.")] = Path("callboard-demo"),
    only: Annotated[str | None, typer.Option(hidden=True, help="Run one system: handmade or callboard.")] = None,
) -> None:
    """Audit every module of the standard library, killed on the way, on two systems, and compare.

    One session per module, twice under the same SIGKILLs: on the loop people write themselves (asyncio, a transcript in
    SQLite), and on Callboard. A tracker that nobody kills keeps the books.
    """
    systems: dict[str | None, tuple[System, ...]] = {
        None: ("handmade", "callboard"),
        "handmade": ("handmade",),
        "callboard": ("callboard",),
    }
    if only not in systems:
        raise typer.BadParameter("handmade or callboard", param_hint="--only")
    options = Options(sessions, path, out, crash, interactive, model, systems[only])
    try:
        kept = run_demo(options, Console())
    except KeyboardInterrupt:
        typer.echo("\ncallboard: interrupted; every process of the demo has ended", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if not kept:
        raise typer.Exit(BROKEN_PROMISE)


def run(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code where it could not be run.

    Args:
        arguments: the command line without the program's name; the process's own for None.

    Raises:
        SystemExit: the command ran, or its options were refused.
    """
    try:
        app(arguments)
    except CallboardError as error:
        typer.secho(f"callboard: {error.message} [{error.code}]", fg=typer.colors.RED, err=True)
        if error.hint:
            typer.echo(f"  hint: {error.hint}", err=True)
        return CANNOT
    return 0
