"""`Model`: what the runtime asks of a language model."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Final

from callboard_protocol.errors import MissingExtraError, UsageError
from callboard_protocol.model_calls import ModelDelta, ModelRequest, ModelResponse

ONLY_OFFLINE: Final = "CALLBOARD_ONLY_OFFLINE_MODELS"
"""The environment variable by which tests forbid models that ask somebody; processes they start inherit it."""


def only_offline_models() -> bool:
    """Whether this process may ask only models that answer by themselves."""
    return os.environ.get(ONLY_OFFLINE, "") not in {"", "0"}


class Model(ABC):
    """A language model: `generate`, and `stream` where it can.

    An error of the provider's is raised as a `ModelError`. One that may pass (429, 5xx, a lost connection) says
    ``retryable=True``, and where the provider asked for a pause, ``context={"retry_after": seconds}``.

    Attributes:
        name: what records, events and limits call it.
        is_offline: whether it answers by itself, asking nobody outside this process: a test's double says True.
    """

    name: str = "model"
    is_offline: ClassVar[bool] = False

    @abstractmethod
    async def generate(self, request: ModelRequest) -> ModelResponse[Any]:
        """Answer a request.

        Args:
            request: its messages are passed by reference: treat them as read-only.

        Raises:
            ModelError: the provider did not answer.
        """

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelDelta]:
        """Answer piece by piece; the last piece carries the whole response.

        By default the whole answer is one piece.

        Raises:
            ModelError: the provider did not answer, or stopped in the middle.
        """
        response = await self.generate(request)
        yield ModelDelta(text=response.text, response=response)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


class UnavailableModel(Model):
    """A model named by a string that nothing installed can reach. Asking it says what is missing.

    Args:
        name: as the agent gave it, ``"provider:name"``.
    """

    is_offline = True

    def __init__(self, name: str) -> None:
        self.name = name

    async def generate(self, request: ModelRequest) -> ModelResponse[Any]:
        """Not possible.

        Raises:
            MissingExtraError: always.
        """
        raise MissingExtraError(
            f"nothing installed can reach the model {self.name!r}",
            hint="install callboard[models], part of the next release, or pass a Model of your own",
        )


def resolve_model(model: Model | str) -> Model:
    """The model an agent asks for.

    A name, ``"provider:model"``, stands for a model of the `models` extra. Without it an agent can still be defined,
    and tested with `agent.override`; asking the model raises `MissingExtraError`.

    Raises:
        UsageError: it is neither a model nor such a name.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, str):
        provider, colon, name = model.partition(":")
        if provider and colon and name:
            return UnavailableModel(model)
        raise UsageError(f"the model {model!r} names no provider", hint="such as 'openai:gpt-5-mini'")
    raise UsageError(f"{model!r} is no model", hint="a Model, or a name such as 'openai:gpt-5-mini'")
