"""What is compared with what: the rows, their contenders, and the targets each row is read against."""

from dataclasses import dataclass

from bench.jobs import Size
from bench.workload import Work

CALLBOARD = "Callboard"
DIRECT = "Callboard, direct"
MAILBOX = "Callboard, through the mailbox"
INTENTS = "Callboard, tools undeclared"
ASYNC_ACTORS = "Callboard, async handlers"
LANGGRAPH = "LangGraph"
LANGGRAPH_DELTA = "LangGraph, DeltaChannel (beta)"
DBOS = "DBOS"
OPENAI_AGENTS = "openai-agents"
PYDANTIC_AI = "pydantic-ai"
BARE_LOOP = "asyncio loop, dicts"
TYPED_LOOP = "asyncio loop, typed"
LMDB = "LMDB one-put commits"
PYKKA = "pykka ThreadingActor"
AUTOGEN = "autogen-core"


@dataclass(frozen=True)
class Contender:
    """One system in a row."""

    name: str
    measure: str
    """``module:function`` below ``bench.measures``."""
    peer: str | None = None
    """``module:function`` below ``bench.peers``."""
    once: bool = False
    """For what takes long and comes out the same each time: one measurement, whatever the repeats."""


@dataclass(frozen=True)
class Metric:
    """One number a row reports."""

    key: str
    label: str
    unit: str
    digits: int = 1

    @property
    def heading(self) -> str:
        """The label with its unit, where the label does not say it."""
        return self.label if self.unit == "/s" else f"{self.label}, {self.unit}"


@dataclass(frozen=True)
class Figure:
    """One metric of one contender."""

    contender: str
    metric: str


@dataclass(frozen=True)
class Claim:
    """A target: one figure, or the ratio of two figures of the same run, within a bound.

    Without a bound the ratio is shown and nothing is claimed.
    """

    text: str
    value: Figure
    over: Figure | None = None
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Row:
    """One comparison."""

    id: str
    title: str
    metrics: tuple[Metric, ...]
    contenders: tuple[Contender, ...]
    claims: tuple[Claim, ...]
    repeat_factor: int = 1
    """Short measurements that a busy disk can spoil are interleaved more often."""

    @property
    def headline(self) -> Metric:
        """The metric the row is plotted by."""
        return self.metrics[0]


BARE_COMMITS = Contender(LMDB, "throughput:bare_commits")
"""Measured at the start of each run too: what the durable rows come to depends on it."""


def build_rows(size: Size) -> tuple[Row, ...]:
    """Build all rows for one size; the size decides the labels of what it scales."""
    return (
        _actors(),
        _durable(size.work),
        _memory(size.work),
        _alone(),
        _growth(size),
        _residence(size),
        _latency(size),
        _recovery(size),
        _guards(size.work),
        _upkeep(),
    )


def _actors() -> Row:
    ask = "ask_us"
    return Row(
        id="actors",
        title="Actors: the price of a message and of an actor",
        metrics=(
            Metric(ask, "ask round trip", "µs"),
            Metric("tell_us", "tell", "µs"),
            Metric("start_us", "start", "µs"),
            Metric("bytes_per_actor", "memory per actor", "B", 0),
        ),
        contenders=(
            Contender(DIRECT, "actors:messages", "callboard_actors:actors"),
            Contender(MAILBOX, "actors:messages", "callboard_actors:mailbox_actors"),
            Contender(ASYNC_ACTORS, "actors:messages", "callboard_actors:async_actors"),
            Contender(PYKKA, "actors:messages", "pykka_peer:actors"),
            Contender(AUTOGEN, "actors:messages", "autogen_peer:actors"),
        ),
        claims=(
            Claim(
                "ask as a run's steps make it, of ThreadingActor's",
                Figure(DIRECT, ask),
                Figure(PYKKA, ask),
                at_most=0.1,
            ),
            Claim("ask behind a waiting message, of ThreadingActor's", Figure(MAILBOX, ask), Figure(PYKKA, ask)),
            Claim("ask of an async handler, of ThreadingActor's", Figure(ASYNC_ACTORS, ask), Figure(PYKKA, ask)),
            Claim("ask of an async handler, of autogen-core's", Figure(ASYNC_ACTORS, ask), Figure(AUTOGEN, ask)),
        ),
    )


def _durable(work: Work) -> Row:
    rate = "steps_per_s"
    ours, intents = Figure(CALLBOARD, rate), Figure(INTENTS, rate)
    return Row(
        id="durable",
        title=f"Durable steps per second: {work.sessions} sessions at once, {work.steps_per_session} steps each",
        metrics=(Metric(rate, "steps/s", "/s", 0),),
        contenders=(
            Contender(CALLBOARD, "throughput:concurrent", "callboard_peer:durable"),
            Contender(INTENTS, "throughput:concurrent", "callboard_peer:durable_intents"),
            Contender(LANGGRAPH, "throughput:concurrent", "langgraph_peer:durable"),
            Contender(LANGGRAPH_DELTA, "throughput:concurrent", "langgraph_peer:durable_delta"),
            Contender(DBOS, "throughput:concurrent", "dbos_peer:durable"),
        ),
        claims=(
            Claim("over LangGraph", ours, Figure(LANGGRAPH, rate), at_least=20),
            Claim("over DBOS", ours, Figure(DBOS, rate), at_least=40),
            Claim("tools undeclared, over LangGraph", intents, Figure(LANGGRAPH, rate), at_least=12),
        ),
    )


def _memory(work: Work) -> Row:
    rate = "steps_per_s"
    ours = Figure(CALLBOARD, rate)
    return Row(
        id="memory",
        title=f"Steps per second in memory: {work.sessions} sessions at once, {work.steps_per_session} steps each",
        metrics=(
            Metric(rate, "steps/s", "/s", 0),
            Metric("own_us_per_step", "of its own per step", "µs"),
        ),
        contenders=(
            Contender(CALLBOARD, "throughput:concurrent", "callboard_peer:in_memory"),
            Contender(LANGGRAPH, "throughput:concurrent", "langgraph_peer:in_memory"),
            Contender(OPENAI_AGENTS, "throughput:concurrent", "openai_agents_peer:in_memory"),
            Contender(PYDANTIC_AI, "throughput:concurrent", "pydantic_ai_peer:in_memory"),
            Contender(TYPED_LOOP, "throughput:concurrent", "plain_loop:typed"),
            Contender(BARE_LOOP, "throughput:concurrent", "plain_loop:bare"),
        ),
        claims=(
            Claim("over LangGraph", ours, Figure(LANGGRAPH, rate), at_least=10),
            Claim("over openai-agents", ours, Figure(OPENAI_AGENTS, rate)),
            Claim("over pydantic-ai", ours, Figure(PYDANTIC_AI, rate)),
            Claim("over the typed loop, which keeps no record", ours, Figure(TYPED_LOOP, rate)),
            Claim("µs of its own per step", Figure(CALLBOARD, "own_us_per_step"), at_most=45),
        ),
    )


def _alone() -> Row:
    rate = "per_s"
    return Row(
        id="alone",
        title="One durable session alone, against bare commits on the same disk",
        metrics=(Metric(rate, "steps or commits/s", "/s", 0),),
        contenders=(
            Contender(CALLBOARD, "throughput:alone", "callboard_peer:durable"),
            BARE_COMMITS,
        ),
        claims=(Claim("of bare commits", Figure(CALLBOARD, rate), Figure(LMDB, rate), at_least=0.6),),
        repeat_factor=2,
    )


def _growth(size: Size) -> Row:
    long_steps, middling_steps = 2 * size.long_rounds + 1, 2 * size.middling_rounds + 1
    middling = f"{CALLBOARD}, {middling_steps} steps"
    langgraph = f"{LANGGRAPH}, {middling_steps} steps"
    delta = f"{LANGGRAPH_DELTA}, {middling_steps} steps"
    live = "live_bytes_per_step"
    payload = size.work.payload_bytes_per_step
    return Row(
        id="growth",
        title=f"A late step against an early one of the same durable run ({long_steps} steps unless named)",
        metrics=(
            Metric("late_us", "late step", "µs", 0),
            Metric("early_us", "early step", "µs", 0),
            Metric("late_bytes", "late step", "B", 0),
            Metric("early_bytes", "early step", "B", 0),
            Metric(live, "compacted file per step", "B", 0),
        ),
        contenders=(
            Contender(CALLBOARD, "growth:to_1000_steps", "callboard_peer:durable"),
            Contender(middling, "growth:to_200_steps", "callboard_peer:durable"),
            Contender(langgraph, "growth:to_200_steps", "langgraph_peer:durable"),
            Contender(delta, "growth:to_200_steps", "langgraph_peer:durable_delta"),
            Contender(f"{DBOS}, {middling_steps} steps", "growth:to_200_steps", "dbos_peer:durable"),
        ),
        claims=(
            Claim("time, late over early", Figure(CALLBOARD, "late_us"), Figure(CALLBOARD, "early_us"), at_most=1.3),
            Claim(
                "bytes, late over early", Figure(CALLBOARD, "late_bytes"), Figure(CALLBOARD, "early_bytes"), at_most=1.1
            ),
            Claim(
                f"file bytes per step (2 * payload of {payload:.0f} B + 300 B)",
                Figure(CALLBOARD, live),
                at_most=2 * payload + 300,
            ),
            Claim("LangGraph's file per step over ours, same steps", Figure(langgraph, live), Figure(middling, live)),
            Claim("LangGraph: time, late over early", Figure(langgraph, "late_us"), Figure(langgraph, "early_us")),
        ),
    )


def _residence(size: Size) -> Row:
    active, parked = "active_bytes", "parked_bytes"
    traced = f"{CALLBOARD}, live objects"
    return Row(
        id="residence",
        title=f"Memory per session: {size.resident_sessions} sessions; {size.resident_threads} threads",
        metrics=(Metric(active, "active, idle", "B", 0), Metric(parked, "parked", "B", 0)),
        contenders=(
            Contender(CALLBOARD, "residence:resident"),
            Contender(traced, "residence:traced", once=True),
            Contender(PYKKA, "actors:idle", "pykka_peer:actors"),
        ),
        claims=(
            Claim("bytes per idle active session", Figure(CALLBOARD, active), at_most=16 * 1024),
            # Nothing is kept of a parked session; what a few objects more or less come to is noise.
            Claim("live bytes per parked session", Figure(traced, parked), at_most=8),
            Claim("an active session, of a ThreadingActor", Figure(CALLBOARD, active), Figure(PYKKA, active)),
        ),
    )


def _latency(size: Size) -> Row:
    def contender(name: str, peer: str) -> Contender:
        return Contender(name, "latency:percentiles", peer)

    langgraph, memory = f"{LANGGRAPH}, durable", f"{CALLBOARD}, in memory"
    durable = f"{CALLBOARD}, durable"
    middle = f"p99_us_at_{size.levels[1]}"
    return Row(
        id="latency",
        title=f"Time per step with several sessions at once, {2 * size.latency_rounds + 1} steps each",
        metrics=tuple(
            Metric(f"{share}_us_at_{level}", f"{share}, {level:,} at once", "µs", 0)
            for level in size.levels
            for share in ("p50", "p99")
        ),
        contenders=(
            contender(durable, "callboard_peer:durable"),
            contender(memory, "callboard_peer:in_memory"),
            contender(langgraph, "langgraph_peer:durable"),
            contender(f"{LANGGRAPH}, in memory", "langgraph_peer:in_memory"),
        ),
        claims=(
            Claim(
                f"LangGraph's p99 over ours, durable, {size.levels[1]:,} at once",
                Figure(langgraph, middle),
                Figure(durable, middle),
            ),
        ),
    )


def _recovery(size: Size) -> Row:
    resume = f"{CALLBOARD}, a run of {2 * size.long_rounds:,} recorded steps"
    start = f"{CALLBOARD}, {size.unfinished_runs:,} unfinished runs"
    many = f"{CALLBOARD}, {size.sessions_on_disk:,} sessions on disk"
    return Row(
        id="recovery",
        title="After a kill: until a long run goes on, until a runtime with many unfinished runs is ready",
        metrics=(
            Metric("ready_ms", "ready", "ms"),
            Metric("resume_ms", "first new step", "ms"),
            Metric("all_done_ms", "all of them done", "ms"),
        ),
        contenders=(
            Contender(resume, "recovery:long_run"),
            Contender(start, "recovery:many_runs"),
            Contender(many, "recovery:many_sessions", once=True),
        ),
        claims=(
            Claim("ms until the first new step", Figure(resume, "resume_ms"), at_most=100),
            Claim("ms until ready", Figure(start, "ready_ms"), at_most=2_000),
            Claim("ms until ready, however many sessions are on disk", Figure(many, "ready_ms"), at_most=1_000),
        ),
    )


def _guards(work: Work) -> Row:
    guards = "guards_us"
    return Row(
        id="guards",
        title=f"What frames and fences cost of a durable step, {work.sessions} sessions at once",
        metrics=(
            Metric(guards, "frames and fences", "µs"),
            Metric("frame_us", "frames", "µs"),
            Metric("fence_us", "fences", "µs"),
            Metric("with_encoding_us", "with encoding", "µs"),
            Metric("step_us", "step", "µs"),
        ),
        contenders=(Contender(CALLBOARD, "guards:share_of_a_step", "callboard_peer:durable"),),
        claims=(Claim("share of a step", Figure(CALLBOARD, guards), Figure(CALLBOARD, "step_us"), at_most=0.15),),
    )


def _upkeep() -> Row:
    rate = "verify_mb_per_s"
    small, large = f"{CALLBOARD}, records of 200 bytes", f"{CALLBOARD}, records of 900 bytes"
    beside = f"{CALLBOARD}, commits beside a backup"
    return Row(
        id="upkeep",
        title="Upkeep: a whole verification, and commits while a backup is made",
        metrics=(
            Metric(rate, "verified", "MB/s"),
            Metric("p99_us", "p99 of a commit", "µs", 0),
            Metric("p99_beside_us", "p99 beside the backup", "µs", 0),
        ),
        contenders=(
            Contender(small, "upkeep:verify_small"),
            Contender(large, "upkeep:verify_large"),
            Contender(beside, "upkeep:backup"),
        ),
        claims=(
            Claim("MB/s verified, records of 200 bytes", Figure(small, rate), at_least=100),
            Claim("MB/s verified, records of 900 bytes", Figure(large, rate), at_least=100),
            Claim(
                "p99 of a commit beside a backup, over without",
                Figure(beside, "p99_beside_us"),
                Figure(beside, "p99_us"),
                at_most=3,
            ),
        ),
    )
