"""`callboard demo`: prepare, run the batch on both systems, compare."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from callboard.demo import outdir, report, sources
from callboard.demo.batch import Outcome, Plan, run_batch, schedule_kills
from callboard.demo.display import Display, display_for
from callboard.demo.reference import uncrashed_pass
from callboard.demo.worker import System
from callboard_protocol.errors import NotImplementedYetError, UsageError

SCRIPTED = "scripted"
UNHURRIED = 0.15
"""Seconds a model call takes where a person is to find the moment for a kill."""


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        sessions: how many modules to audit; None for all.
        path: a directory of the user's own; None for the standard library.
        out: where logs, data and reports go.
        crash: whether the worker is killed on schedule.
        interactive: whether the kills are left to the user.
        model: `scripted`, or `provider:name`.
        systems: which systems run, in order.
    """

    sessions: int | None = None
    path: Path | None = None
    out: Path = Path("callboard-demo")
    crash: bool = True
    interactive: bool = False
    model: str = SCRIPTED
    systems: tuple[System, ...] = ("handmade", "callboard")


def run_demo(options: Options, console: Console) -> bool:
    """Run the demo and print what came of it.

    Returns:
        Whether Callboard kept its promises: every session finished, no finding lost or filed twice, no used answer
        paid for again.

    Raises:
        CallboardError: the options make no sense, or a batch could not be carried to its end.
    """
    _check_model(options.model)
    found = sources.standard_library() if options.path is None else sources.directory(options.path)
    chosen = sources.choose(found, options.sessions)
    with outdir.fresh(options.out) as out:
        display = display_for(console, len(chosen.modules), options.systems, interactive=options.interactive)
        with display:
            plan, outcomes = asyncio.run(_run(options, chosen, out, display))
        console.print(report.title(plan), style="bold", highlight=False, markup=False)
        console.print(report.comparison(plan, outcomes))
        for line in report.legend(plan):
            console.print(line, style="dim", highlight=False, markup=False)
        for name, path in report.write(plan, outcomes).items():
            console.print(f"{name}: {path}", highlight=False, markup=False, soft_wrap=True)
    return all(report.held(outcome, plan) for outcome in outcomes if outcome.system == "callboard")


async def _run(options: Options, chosen: sources.Sources, out: Path, display: Display) -> tuple[Plan, list[Outcome]]:
    reference = await uncrashed_pass(chosen, told=display.reading)
    scheduled = options.crash and not options.interactive
    plan = Plan(
        sources=chosen,
        reference=reference,
        out=out,
        kills=schedule_kills(reference.model_calls, len(chosen.modules)) if scheduled else (),
        model_latency=UNHURRIED if options.interactive else 0.0,
        interactive=options.interactive,
    )
    return plan, [await run_batch(system, plan, display) for system in options.systems]


def _check_model(model: str) -> None:
    if model == SCRIPTED:
        return
    provider, colon, name = model.partition(":")
    if not (provider and colon and name):
        raise UsageError(f"--model {model}: not of the form provider:name", hint="such as openai:gpt-5-mini")
    raise NotImplementedYetError(
        f"--model {model}: this release has no adapter to model providers (the `models` extra is not part of it yet)",
        hint="leave --model out: the demo's scripted model needs no key and no network",
    )
