"""What every message between actors is made of."""

from typing import Annotated, Any, Generic, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, SkipValidation

ReplyT = TypeVar("ReplyT")
LiveT = TypeVar("LiveT")

Live: TypeAlias = Annotated[LiveT, SkipValidation]
"""A field passed by reference: neither copied nor validated."""


class Command(BaseModel):
    """A message that expects no answer."""

    # Built on first use: importing Callboard should not pay for validators that the process may never need.
    model_config = ConfigDict(
        frozen=True, arbitrary_types_allowed=True, extra="forbid", protected_namespaces=(), defer_build=True
    )


class Request(Command, Generic[ReplyT]):
    """A message whose answer has the type `ReplyT`."""

    def __class_getitem__(cls, reply: Any) -> type:
        """The class itself: pydantic would make and build another one for each type of answer."""
        return cls
