"""What a store holds, in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from callboard_protocol.records import LogRecord, RunBegan, RunEnded, SessionRewound, StepCompleted
from callboard_protocol.sessions import MemoryEntry, RunEntry, SessionCheckpoint, SessionHead
from callboard_storage.store import Batch
from callboard_storage.store_values import Fence, Lease


@dataclass
class SessionModel:
    """What a session holds.

    Attributes:
        log: its records.
        memory: its entries' values, by name.
        checkpoints: by id.
        has_head: whether where it stands was ever written.
        run: the run that began in it and has not ended.
        lease: its lock, while this opening of the store holds it.
        last: the last batch that was written to its log, and behind what.
    """

    log: list[LogRecord] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    checkpoints: dict[str, SessionCheckpoint] = field(default_factory=dict)
    has_head: bool = False
    run: str | None = None
    lease: Lease | None = None
    last: tuple[Batch, Fence] | None = None

    def stands(self) -> dict[str, Any]:
        """What its head must say, counted record by record."""
        said: list[int] = []
        runs, active, last_run = 0, None, None
        for record in self.log:
            length = said[-1] if said else 0
            if isinstance(record, RunBegan):
                runs, active, last_run = runs + 1, record.run_id, record.run_id
                length += 1
            elif isinstance(record, RunEnded):
                active = None
            elif isinstance(record, SessionRewound):
                active, length = None, said[record.to_sequence] + 1
            elif isinstance(record, StepCompleted):
                length += 1
            said.append(length)
        return {
            "next_sequence": len(self.log),
            "transcript_length": said[-1] if said else 0,
            "run_count": runs,
            "active_run": active,
            "last_run": last_run,
        }


@dataclass(frozen=True)
class Change:
    """What a batch does to a session."""

    records: Sequence[LogRecord] = ()
    head: SessionHead | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    checkpoint: SessionCheckpoint | None = None
    run: RunEntry | None = None

    def into(self, batch: Batch, first: int) -> Batch:
        for sequence, record in enumerate(self.records, first):
            batch.append(sequence, record)
        if self.head is not None:
            batch.put_head(self.head)
        for name, value in self.memory.items():
            if value is None:
                batch.delete_memory(name)
            else:
                batch.put_memory(MemoryEntry(name=name, value=value))
        if self.checkpoint is not None:
            batch.put_checkpoint(self.checkpoint)
        if self.run is not None:
            batch.put_run(self.run)
        return batch
