"""``callboard store``: looking after a data directory."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from callboard_protocol.base import Frozen
from callboard_protocol.errors import UsageError
from callboard_storage import upkeep
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.upkeep import ImportReport, Problem, RetainReport
from callboard_storage.upkeep.turns import existing

ResultT = TypeVar("ResultT")

DAMAGED = 1

_SHOWN = 20
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

app = typer.Typer(help="Look after a data directory.", no_args_is_help=True)

Directory = Annotated[Path, typer.Argument(metavar="PATH", help="The data directory.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def verify(path: Directory, *, as_json: AsJson = False) -> None:
    """Read every row and say what is damaged; runs may go on.

    Exits with 1 where something is.
    """
    with _progress("verifying") as progress:
        report = upkeep.verify(path, progress=progress)
    if as_json:
        _print_json(report)
    else:
        _show(report.problems, report.more_problems)
        rows = sum(report.rows.values())
        verdict = "nothing is damaged" if report.is_sound else f"{len(report.problems) + report.more_problems} problems"
        typer.echo(
            f"{report.path}: {verdict}. {report.sessions} sessions, {rows} rows, {decimal(report.bytes_checked)} "
            f"in {report.seconds:.1f} s ({decimal(int(report.bytes_per_second))}/s)"
        )
        if report.unreferenced_chunks:
            typer.echo(f"{report.unreferenced_chunks} pieces of large values belong to no record; compact removes them")
    if not report.is_sound:
        raise typer.Exit(DAMAGED)


@app.command()
def compact(path: Directory, *, as_json: AsJson = False) -> None:
    """Give back the space that deletions left; nobody may have the directory open."""
    with _progress("compacting") as progress:
        report = upkeep.compact(path, progress=progress)
    _print(
        report,
        as_json,
        f"{report.path}: {decimal(report.bytes_before)} became {decimal(report.bytes_after)} in "
        f"{report.seconds:.1f} s; {report.rows} rows, every one compared",
    )


@app.command()
def migrate(path: Directory, *, as_json: AsJson = False) -> None:
    """Bring what another engine or an earlier release made up to date; nobody may have the directory open.

    A directory that needs nothing is left as it is.
    """
    with _progress("migrating") as progress:
        report = upkeep.migrate(path, progress=progress)
    if not report.is_migrated:
        _print(report, as_json, f"{report.path}: nothing to do, it is of LMDB {report.engine}, format {report.format}")
        return
    if not as_json:
        _show(report.problems, report.more_problems)
    before, after = (report.from_engine, report.from_format), (report.engine, report.format)
    became = "LMDB {}, format {}".format(*before) + (
        " became LMDB {}, format {}".format(*after) if after != before else ""
    )
    notes = [f"{report.upgraded} were of an earlier schema and are not any more"] if report.upgraded else []
    notes += [f"{report.unreadable} could not be read and are as they were"] if report.unreadable else []
    sentence = f"{report.path}: {became}, in {report.seconds:.1f} s; {report.rows} rows, every one compared"
    _print(report, as_json, "; ".join([sentence, *notes]))


@app.command()
def backup(
    path: Directory,
    target: Annotated[Path, typer.Argument(help="A directory that does not exist yet.", show_default=False)],
    *,
    as_json: AsJson = False,
) -> None:
    """Make a consistent copy; runs may go on."""
    with _progress("copying") as progress:
        report = upkeep.backup(path, target, progress=progress)
    _print(report, as_json, f"{report.backup}: a backup of {decimal(report.bytes_written)}, in {report.seconds:.1f} s")


@app.command()
def restore(
    path: Annotated[Path, typer.Argument(help="A directory that does not exist yet.", show_default=False)],
    source: Annotated[Path, typer.Argument(help="The backup.", show_default=False)],
    *,
    as_json: AsJson = False,
) -> None:
    """Make a data directory at PATH of the backup SOURCE, which is verified first."""
    with _progress("verifying") as progress:
        report = upkeep.restore(source, path, progress=progress)
    verified = report.verified
    _print(
        report,
        as_json,
        f"{report.path}: restored and verified, {verified.sessions} sessions, {sum(verified.rows.values())} rows, in "
        f"{report.seconds:.1f} s",
    )


@app.command()
def export(
    path: Directory,
    session: Annotated[str, typer.Argument(help="The session's id.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="A file that does not exist yet, or - for the output.")] = Path("-"),
    *,
    as_json: AsJson = False,
) -> None:
    """Write a session as JSON Lines, losing nothing; runs may go on."""
    if file != Path("-"):
        report = upkeep.export_session(path, session, file)
        rows = ", ".join(f"{count} {table}" for table, count in report.rows.items())
        _print(report, as_json, f"{report.file}: session {session}: {rows}; {decimal(report.bytes_written)}")
        return
    if as_json:
        raise UsageError("--json needs a file: the session itself goes to the output", hint="give a file")
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "session.jsonl"
        upkeep.export_session(path, session, whole)
        with whole.open("rb") as lines:
            shutil.copyfileobj(lines, sys.stdout.buffer)
            sys.stdout.buffer.flush()


@app.command("import")
def import_(
    path: Directory,
    file: Annotated[Path, typer.Argument(help="What `export` wrote.", show_default=False)],
    *,
    session_id: Annotated[str | None, typer.Option("--as", help="The id the session gets here.")] = None,
    with_unfinished: Annotated[
        bool, typer.Option("--with-unfinished", help="Carry its unfinished runs on here, and nowhere else.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read an exported session in, all of it or nothing; no other process may have the directory open."""

    async def work(store: LmdbStore) -> ImportReport:
        return await upkeep.import_session(store, file, session_id=session_id, with_unfinished=with_unfinished)

    report = asyncio.run(_on_store(path, work))
    rows = ", ".join(f"{count} {table}" for table, count in report.rows.items())
    _print(report, as_json, f"{path}: session {report.session_id}: {rows}")


@app.command()
def stats(path: Directory, *, as_json: AsJson = False) -> None:
    """Count what a directory holds; runs may go on."""
    report = upkeep.stats(path)
    lines = [f"{table:>14} {count}" for table, count in {"sessions": report.sessions, **report.rows}.items()]
    lines += [f"{'live data':>14} {decimal(report.bytes_used)}", f"{'on disk':>14} {decimal(report.bytes_on_disk)}"]
    lines += [f"{'format':>14} {report.format}, LMDB {report.engine}"]
    _print(report, as_json, "\n".join([report.path, *lines]))


@app.command()
def retain(
    path: Directory,
    *,
    older_than: Annotated[str | None, typer.Option(help="Remove sessions untouched for longer: 90d, 12h, 2w.")] = None,
    keep: Annotated[int | None, typer.Option(help="Remove all but so many, the ones touched last.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing; say what would be.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove old sessions, never one with a run that has not ended; no other process may have the directory open."""
    existing(path)
    age = None if older_than is None else _duration(older_than)

    async def work(store: LmdbStore) -> RetainReport:
        return await upkeep.retain(store, older_than=age, keep=keep, dry_run=dry_run)

    report = asyncio.run(_on_store(path, work))
    if not as_json:
        for session in report.removed:
            typer.echo(f"  {session}")
    notes = [f"{len(report.in_use)} were due but are in use"] if report.in_use else []
    notes += [f"{len(report.damaged)} are damaged and were left alone"] if report.damaged else []
    did = "would remove" if dry_run else "removed"
    of_rows = "" if dry_run else f" ({report.entries} rows)"
    _print(
        report,
        as_json,
        "; ".join([f"{path}: {did} {len(report.removed)} sessions{of_rows}, {report.kept} are left", *notes]),
    )


async def _on_store(path: Path, work: Callable[[LmdbStore], Coroutine[Any, Any, ResultT]]) -> ResultT:
    store = LmdbStore(path)
    await store.open()
    try:
        return await work(store)
    finally:
        await store.close()


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if found is None:
        raise UsageError(f"--older-than {text!r} is no duration", hint="a number and s, m, h, d or w: 90d")
    return timedelta(**{_UNITS[found[2]]: float(found[1])})


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the error output, so that what goes to the output can be piped; none where nobody looks at it."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(problems: Sequence[Problem], more: int) -> None:
    for problem in problems[:_SHOWN]:
        place = " ".join(part for part in (problem.table, problem.key) if part)
        typer.secho(f"  {place or 'data.mdb'}: {problem.what}", fg=typer.colors.RED)
    hidden = len(problems[_SHOWN:]) + more
    if hidden:
        typer.echo(f"  ... and {hidden} more")


def _print(report: Frozen, as_json: bool, sentence: str) -> None:
    if as_json:
        _print_json(report)
    else:
        typer.echo(sentence)


def _print_json(report: Frozen) -> None:
    typer.echo(report.model_dump_json(indent=2))
