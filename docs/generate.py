"""Writes the generated blocks of these documents from the code they describe: `python docs/generate.py`.

A block stands between ``<!-- generated: name -->`` and ``<!-- end -->``; everything else is written by hand. The test
suite fails while a block differs from what is generated here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from callboard_protocol.event_base import Event, LiveEvent, RecordedEvent, RunEvent
from callboard_protocol.events import MODELS
from callboard_protocol.states import FINAL, STOP_INPUTS, TRANSITIONS, RunState, state_for

HERE = Path(__file__).parent

FAMILIES = (
    ("Runs", "run."),
    ("Sessions", "session."),
    ("Steps and output", "step.", "validation.", "artifact."),
    ("Model calls", "llm."),
    ("Usage", "usage.", "budget."),
    ("Tool calls", "tool."),
    ("Context", "context."),
    ("Memory", "memory."),
    ("Patterns", "pattern."),
    ("Delegation", "agent."),
    ("The runtime", "runtime.", "config.", "actor.", "store.", "subscriber."),
)


def shown(annotation: object) -> str:
    """A type as a reader of the docs would write it: without the modules it comes from."""
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", inspect.formatannotation(annotation))


def render_mermaid() -> str:
    """The run's state diagram, one arrow for each pair of states."""
    arrows: dict[tuple[RunState, RunState], list[str]] = {}
    for (source, event), target in TRANSITIONS.items():
        arrows.setdefault((source, target), []).append(event)
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> queued: submit"]
    lines += [f"    {source} --> {target}: {' / '.join(inputs)}" for (source, target), inputs in arrows.items()]
    lines += [f"    {state} --> [*]" for state in RunState if state in FINAL]
    return "\n".join([*lines, "```"])


def render_stop_reasons() -> str:
    """What each stop reason makes of a running run."""
    rows = [f"| `{reason}` | `{event}` | `{state_for(reason)}` |" for reason, event in STOP_INPUTS.items()]
    return "\n".join(["| Stop reason | Input | State |", "| --- | --- | --- |", *rows])


def render_events() -> str:
    """Every event, family by family, with when it is published and what it says."""
    blocks = []
    for title, *prefixes in FAMILIES:
        rows = [_event_row(name, model) for name, model in MODELS.items() if name.startswith(tuple(prefixes))]
        heading = [f"### {title}", "", "| Event | Kind | When | Fields |", "| --- | --- | --- | --- |"]
        blocks.append("\n".join(heading + rows))
    return "\n\n".join(blocks)


def described_fields(model: type[Event]) -> dict[str, str]:
    """The fields a model's docstring describes, each with its description."""
    _, _, attributes = inspect.getdoc(model).partition("\nAttributes:\n")  # type: ignore[union-attr]  # all have one
    entries = re.split(r"\n(?=    \w+: )", "\n" + attributes)
    pairs = (entry.strip().partition(": ") for entry in entries if entry.strip())
    return {name: " ".join(text.split()) for name, _, text in pairs}


def own_fields(model: type[Event]) -> list[str]:
    """The fields a model has beyond those that its kind of event shares, in order."""
    shared = next(base for base in (LiveEvent, RunEvent, Event) if issubclass(model, base))
    return [name for name in model.model_fields if name not in shared.model_fields]


def _event_row(name: str, model: type[Event]) -> str:
    kind = "recorded" if issubclass(model, RecordedEvent) else "live" if issubclass(model, LiveEvent) else "once"
    when = " ".join((inspect.getdoc(model) or "").partition("\n\nAttributes:")[0].split())
    descriptions = described_fields(model)
    fields = "<br>".join(
        f"`{field}: {shown(model.__annotations__[field])}`: {descriptions[field]}".replace("|", "\\|")
        for field in own_fields(model)
    )
    return f"| `{name}`<br>`{model.__name__}` | {kind} | {when} | {fields} |"


BLOCKS: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "RUN-STATES.md": {"states": render_mermaid, "stop reasons": render_stop_reasons},
    "EVENTS.md": {"events": render_events},
}


def with_blocks(text: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """The document with each of its generated blocks made anew.

    Raises:
        ValueError: the document lacks the markers of a block.
    """
    for name, render in blocks.items():
        start, end = f"<!-- generated: {name} -->\n", "\n<!-- end -->"
        head, found, rest = text.partition(start)
        _, closed, tail = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"no markers of the block {name!r}")
        text = head + start + render() + end + tail
    return text


if __name__ == "__main__":
    for document, blocks in BLOCKS.items():
        path = HERE / document
        path.write_text(with_blocks(path.read_text(encoding="utf-8"), blocks), encoding="utf-8")
