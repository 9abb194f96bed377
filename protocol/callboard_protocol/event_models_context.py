"""The events of what a model gets to see: context and memory."""

from typing import Literal

from callboard_protocol.event_base import RecordedEvent, RunEvent
from callboard_protocol.runs import ErrorDetails


class ContextCreated(RunEvent, frozen=True):
    """The run's context stands: transcript, state, deps and memory can be read.

    Attributes:
        assembler: the name of what will choose the messages a model sees.
        transcript_length: messages in the transcript.
        artifact_count: artifacts in the session.
    """

    name: Literal["context.created"] = "context.created"
    assembler: str
    transcript_length: int = 0
    artifact_count: int = 0


class ContextAssembleStarted(RunEvent, frozen=True):
    """The messages a model will see are being chosen.

    Attributes:
        assembler: the assembler's name.
        messages_before: messages there are.
    """

    name: Literal["context.assemble.started"] = "context.assemble.started"
    assembler: str
    messages_before: int = 0


class ContextAssembleCompleted(RunEvent, frozen=True):
    """The messages a model will see are chosen.

    Attributes:
        assembler: the assembler's name.
        messages_before: messages there are.
        messages_after: messages the model sees.
        duration: seconds it took.
    """

    name: Literal["context.assemble.completed"] = "context.assemble.completed"
    assembler: str
    messages_before: int = 0
    messages_after: int = 0
    duration: float = 0.0


class ContextCompactStarted(RunEvent, frozen=True):
    """A long history is being made short for the models; the transcript keeps everything.

    Attributes:
        assembler: the assembler's name.
        messages_before: messages models see until now.
    """

    name: Literal["context.compact.started"] = "context.compact.started"
    assembler: str
    messages_before: int = 0


class ContextCompactCompleted(RecordedEvent, frozen=True):
    """Models see a shorter history from here on.

    Attributes:
        assembler: the assembler's name.
        messages_before: messages models saw.
        messages_after: messages they see now.
        duration: seconds it took.
    """

    name: Literal["context.compact.completed"] = "context.compact.completed"
    assembler: str
    messages_before: int = 0
    messages_after: int = 0
    duration: float = 0.0


class ContextCompactFailed(RunEvent, frozen=True):
    """The history stays as it is.

    Attributes:
        assembler: the assembler's name.
        error: why.
        duration: seconds it took.
    """

    name: Literal["context.compact.failed"] = "context.compact.failed"
    assembler: str
    error: ErrorDetails
    duration: float = 0.0


class MemoryInjectStarted(RunEvent, frozen=True):
    """A memory is asked what the run should know.

    Attributes:
        memory: the memory's name.
    """

    name: Literal["memory.inject.started"] = "memory.inject.started"
    memory: str


class MemoryInjectCompleted(RecordedEvent, frozen=True):
    """A memory has told the run what it should know.

    Attributes:
        memory: the memory's name.
        messages: how many messages it added.
        duration: seconds it took.
    """

    name: Literal["memory.inject.completed"] = "memory.inject.completed"
    memory: str
    messages: int = 0
    duration: float = 0.0


class MemoryInjectFailed(RunEvent, frozen=True):
    """A memory could not tell what it knows.

    Attributes:
        memory: the memory's name.
        error: why.
        on_error: whether the run goes on without it or fails.
        duration: seconds it took.
    """

    name: Literal["memory.inject.failed"] = "memory.inject.failed"
    memory: str
    error: ErrorDetails
    on_error: Literal["continue", "fail"] = "continue"
    duration: float = 0.0


class MemoryWritebackStarted(RunEvent, frozen=True):
    """A memory is given what the run brought.

    Attributes:
        memory: the memory's name.
    """

    name: Literal["memory.writeback.started"] = "memory.writeback.started"
    memory: str


class MemoryWritebackCompleted(RecordedEvent, frozen=True):
    """A memory keeps what the run brought.

    Attributes:
        memory: the memory's name.
        entries: how many entries it wrote.
        duration: seconds it took.
    """

    name: Literal["memory.writeback.completed"] = "memory.writeback.completed"
    memory: str
    entries: int = 0
    duration: float = 0.0


class MemoryWritebackFailed(RunEvent, frozen=True):
    """A memory could not keep what the run brought.

    Attributes:
        memory: the memory's name.
        error: why.
        on_error: whether the run's result stands all the same or the run fails.
        duration: seconds it took.
    """

    name: Literal["memory.writeback.failed"] = "memory.writeback.failed"
    memory: str
    error: ErrorDetails
    on_error: Literal["continue", "fail"] = "continue"
    duration: float = 0.0


class MemoryCompactStarted(RunEvent, frozen=True):
    """A memory is making itself smaller.

    Attributes:
        memory: the memory's name.
        entries_before: entries it has.
    """

    name: Literal["memory.compact.started"] = "memory.compact.started"
    memory: str
    entries_before: int = 0


class MemoryCompactCompleted(RunEvent, frozen=True):
    """A memory has made itself smaller.

    Attributes:
        memory: the memory's name.
        entries_before: entries it had.
        entries_after: entries it has now.
        duration: seconds it took.
    """

    name: Literal["memory.compact.completed"] = "memory.compact.completed"
    memory: str
    entries_before: int = 0
    entries_after: int = 0
    duration: float = 0.0


class MemoryCompactFailed(RunEvent, frozen=True):
    """A memory stays as large as it was.

    Attributes:
        memory: the memory's name.
        error: why.
        on_error: whether the run goes on or fails.
        duration: seconds it took.
    """

    name: Literal["memory.compact.failed"] = "memory.compact.failed"
    memory: str
    error: ErrorDetails
    on_error: Literal["continue", "fail"] = "continue"
    duration: float = 0.0
