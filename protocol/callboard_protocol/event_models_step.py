"""The events of a run on its way: what it consumes, makes, repeats and hands to other agents."""

from typing import Literal

from callboard_protocol.event_base import RecordedEvent, RunEvent
from callboard_protocol.runs import RunArtifact, RunUsage


class UsageUpdated(RunEvent, frozen=True):
    """The run has consumed more.

    Attributes:
        usage: what it has consumed so far.
    """

    name: Literal["usage.updated"] = "usage.updated"
    usage: RunUsage


class BudgetCostSkipped(RunEvent, frozen=True):
    """A cost limit cannot hold for a model whose price is not known. Told once per run and model.

    Attributes:
        model: the model's name.
    """

    name: Literal["budget.cost_skipped"] = "budget.cost_skipped"
    model: str


class ValidationRetry(RecordedEvent, frozen=True):
    """The output does not fit the agent's output type; the model is told, and tries again.

    Attributes:
        retry: which retry this is, from 1.
        max_validation_retries: how many there may be.
        message: what the model is told.
    """

    name: Literal["validation.retry"] = "validation.retry"
    retry: int
    max_validation_retries: int
    message: str


class StepRestarted(RunEvent, frozen=True):
    """A step runs again after a crash: what was streamed of it before no longer counts.

    Attributes:
        call_id: the step's call id, the same as before.
        step: scope and ordinal within the run.
        attempt: which attempt of the step begins, from 2.
    """

    name: Literal["step.restarted"] = "step.restarted"
    call_id: str
    step: str
    attempt: int


class ArtifactEmitted(RecordedEvent, frozen=True):
    """The run made something that its session keeps.

    Attributes:
        call_id: the step that made it.
        artifact: what it made.
    """

    name: Literal["artifact.emitted"] = "artifact.emitted"
    call_id: str
    artifact: RunArtifact


class AgentDelegated(RunEvent, frozen=True):
    """The run has given work to a child run.

    Attributes:
        call_id: the step that delegated; the child's run id.
        child_agent_id: who does the work.
        child_session_id: in which session.
        session: whether that session is the child's own, the parent's, or a fork of the parent's.
        background: whether the parent goes on without waiting.
        input_text: what was asked.
    """

    name: Literal["agent.delegated"] = "agent.delegated"
    call_id: str
    child_agent_id: str
    child_session_id: str
    session: Literal["isolated", "shared", "forked"] = "isolated"
    background: bool = False
    input_text: str = ""


class AgentTransferred(RunEvent, frozen=True):
    """The run has handed over: the child's result will be its own.

    Attributes:
        call_id: the step that transferred; the child's run id.
        child_agent_id: who takes over.
        child_session_id: in which session.
        session: whether that session is the child's own, the parent's, or a fork of the parent's.
        input_text: what was handed over.
    """

    name: Literal["agent.transferred"] = "agent.transferred"
    call_id: str
    child_agent_id: str
    child_session_id: str
    session: Literal["isolated", "shared", "forked"] = "isolated"
    input_text: str = ""
