"""What the parent asks of a child process, and what the child hands back."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from bench.workload import Work


@dataclass(frozen=True)
class Size:
    """How large the measurements are; ``QUICK`` is a smoke test, ``FULL`` is what may be published."""

    work: Work = field(default_factory=Work)
    seconds: float = 2.0
    """Rows of throughput repeat whole batches of sessions until this much time has passed."""
    actors: int = 2_000
    asks: int = 5_000
    tells: int = 20_000
    long_rounds: int = 500
    """Rounds of a long run: 500 are 1,001 steps."""
    middling_rounds: int = 100
    """Rounds of a run for systems whose cost per step grows too fast for a long one: 201 steps."""
    long_sessions: int = 3
    levels: tuple[int, ...] = (1, 100, 1_000)
    """How many sessions run at once in the latency row."""
    latency_rounds: int = 4
    """Rounds of each of those sessions: a thousand of the usual length would take a slow system a minute."""
    resident_sessions: int = 5_000
    warm_sessions: int = 5_000
    """Run and parked first where live objects are counted: enough to fill caches of a few thousand entries."""
    resident_threads: int = 2_000
    unfinished_runs: int = 10_000
    sessions_on_disk: int = 100_000
    upkeep_bytes: int = 128 * 1024 * 1024
    """How much a directory holds that is verified or backed up."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Size":
        """Rebuild a size in the child process."""
        return cls(**{**data, "work": Work(**data["work"]), "levels": tuple(data["levels"])})


FULL = Size()
QUICK = Size(
    work=Work(sessions=20),
    seconds=0.2,
    actors=200,
    asks=500,
    tells=2_000,
    long_rounds=60,
    middling_rounds=40,
    long_sessions=1,
    levels=(1, 20, 100),
    resident_sessions=500,
    warm_sessions=200,
    resident_threads=200,
    unfinished_runs=300,
    sessions_on_disk=2_000,
    upkeep_bytes=4 * 1024 * 1024,
)


@dataclass(frozen=True)
class Job:
    """One measurement of one system, done in a process of its own."""

    measure: str
    """``module:function`` of the measurement."""
    peer: str | None
    """``module:function`` that opens the system, or None where the measurement brings its own."""
    size: Size
    scratch: Path
    """An empty directory on the disk under measurement."""

    def to_json(self) -> dict[str, Any]:
        """Flatten to what JSON carries."""
        return {**asdict(self), "scratch": str(self.scratch)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Job":
        """Rebuild a job in the child process."""
        return cls(data["measure"], data["peer"], Size.from_json(data["size"]), Path(data["scratch"]))

    def room(self, name: str) -> Path:
        """Make a fresh directory inside the scratch directory."""
        path = self.scratch / name
        path.mkdir()
        return path

    def with_work(self, work: Work) -> "Job":
        """Return the same job for another amount of work."""
        return replace(self, size=replace(self.size, work=work))


@dataclass(frozen=True)
class Measurement:
    """What a child hands back."""

    metrics: Mapping[str, float]
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Curves for the plots, by name."""


Measure: TypeAlias = Callable[[Job], Coroutine[Any, Any, Measurement]]
