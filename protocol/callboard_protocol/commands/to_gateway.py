"""What is said to the `ModelGateway`."""

from typing import Any

from callboard_protocol.commands.base import Command, Live, Request


class AskModel(Request[Any]):
    """Make one model call. The answer is a `ModelReply`.

    Attributes:
        model: the `Model`.
        request: the `ModelRequest`, its history by reference.
        on_delta: called with each piece of text as it arrives; None where nobody watches.
    """

    model: Live[Any]
    request: Live[Any]
    on_delta: Live[Any] = None


class AbandonModelCall(Command):
    """Stop a model call if it is in flight.

    Attributes:
        call_id: which.
    """

    call_id: str
