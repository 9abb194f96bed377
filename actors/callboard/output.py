"""What a run must return: the agent's `output_type`, as a check and as a schema for the model."""

from __future__ import annotations

from typing import Any

from pydantic import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from callboard.tools.results import to_plain
from callboard_protocol.base import JsonObject
from callboard_protocol.errors import AgentDefinitionError, UnpersistableValueError
from callboard_protocol.failures import text_of


class OutputContract:
    """The agent's output type.

    Args:
        output_type: any type pydantic can validate; `str` takes the model's text as it is.

    Raises:
        AgentDefinitionError: pydantic cannot validate the type.
    """

    def __init__(self, output_type: type[Any]) -> None:
        self.type = output_type
        self.is_text = output_type is str
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(output_type)
            self.schema: JsonObject | None = None if self.is_text else self._adapter.json_schema()
        except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema):
            raise AgentDefinitionError(
                f"output_type={output_type!r} is no type that a value can be validated against",
                hint="use a pydantic model or plain types",
            ) from None

    def validate(self, raw: Any) -> Any:
        """`raw` as the output type: text is read as JSON, anything else is taken as it is.

        Raises:
            ValueError: it does not fit; the message says where, so that a model can mend it.
        """
        if self.is_text:
            if isinstance(raw, str):
                return raw
            raise ValueError(f"the output is a {type(raw).__name__}, not text")
        try:
            if isinstance(raw, str):
                return self._adapter.validate_json(_without_fence(raw))
            return self._adapter.validate_python(raw)
        except ValidationError as problem:
            raise ValueError(readable(problem)) from None

    def dump(self, output: Any) -> Any:
        """The output as plain data.

        Raises:
            UnpersistableValueError: it has none.
        """
        if self.is_text:
            return output
        try:
            plain = self._adapter.dump_python(output)
        except Exception as problem:
            raise UnpersistableValueError(f"a {type(output).__qualname__} of which {text_of(problem)}") from problem
        return to_plain(plain)

    def load(self, plain: Any) -> Any:
        """What `dump` gave, as the output type again."""
        return plain if self.is_text else self._adapter.validate_python(plain)


def _without_fence(text: str) -> str:
    """Models wrap JSON in a Markdown fence, however often they are asked not to."""
    stripped = text.strip()
    if stripped.startswith("```") and stripped.endswith("```"):
        return stripped[3:-3].removeprefix("json").strip()
    return stripped


def readable(problem: ValidationError) -> str:
    """What does not fit, and where, in one line."""
    lines = [
        f"{'.'.join(str(part) for part in error['loc']) or 'output'}: {error['msg']}" for error in problem.errors()
    ]
    return "; ".join(lines)
