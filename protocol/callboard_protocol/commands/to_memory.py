"""What is said to a `MemoryActor`."""

from collections.abc import Sequence
from typing import Any

from callboard_protocol.commands.base import Command, Live, Request


class InjectMemory(Request[Any]):
    """What the memory has to say before a run begins. The answer is a `MemoryOutcome` of texts for
    the system prompt.

    Attributes:
        message: the run's input message.
    """

    message: Live[Any]


class WriteBackMemory(Request[Any]):
    """What the memory keeps of a run. The answer is a `MemoryOutcome` of `MemoryEntry`s, not yet kept.

    Attributes:
        exchange: the run's input and answer.
    """

    exchange: Live[Any]


class KeepMemory(Command):
    """These entries are on disk now.

    Attributes:
        entries: as `WriteBackMemory` answered them.
    """

    entries: Live[Sequence[Any]]


class AbandonMemoryCall(Command):
    """Cancel what the memory is being asked, if anything: its run waits for it no more."""
