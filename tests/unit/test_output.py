from __future__ import annotations

from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from callboard.output import OutputContract
from callboard_protocol.errors import AgentDefinitionError, UnpersistableValueError


class Invoice(BaseModel):
    number: int
    due: date
    lines: tuple[str, ...] = ()
    tags: set[str] = set()
    total: Decimal = Decimal(0)


INVOICE = Invoice(number=7, due=date(2026, 5, 1), lines=("a",), tags={"x"}, total=Decimal("1.10"))


def test_text_is_taken_as_it_is():
    contract = OutputContract(str)
    assert contract.validate(' {"not": "parsed"} ') == ' {"not": "parsed"} '
    assert contract.schema is None
    assert contract.load(contract.dump("text")) == "text"
    with pytest.raises(ValueError, match="the output is a int, not text"):
        contract.validate(7)


@pytest.mark.parametrize(
    ("output_type", "raw", "output"),
    [
        (int, "42", 42),
        (int, 42, 42),
        (bool | None, "null", None),
        (list[int], "[1, 2]", [1, 2]),
        (Invoice, '{"number": 7, "due": "2026-05-01"}', Invoice(number=7, due=date(2026, 5, 1))),
        (Invoice, INVOICE, INVOICE),
        (Invoice, INVOICE.model_dump(), INVOICE),
        (int, "```json\n42\n```", 42),
        (int, "  ```\n42\n```  ", 42),
        (int, "```42```", 42),
    ],
)
def test_what_fits_comes_out_in_the_type(output_type: Any, raw: Any, output: Any):
    assert OutputContract(output_type).validate(raw) == output


@pytest.mark.parametrize(
    ("output_type", "raw", "says"),
    [
        (int, "forty-two", "output: Invalid JSON"),
        (int, '"forty-two"', "output: Input should be a valid integer"),
        (Invoice, '{"number": "x", "due": "2026-05-01"}', "number: Input should be a valid integer"),
        (Invoice, '{"number": 7}', "due: Field required"),
        (list[Invoice], '[{"number": 7}]', "0.due: Field required"),
        (int, "```json\n42", "output: Invalid JSON"),
    ],
)
def test_what_does_not_fit_is_refused_in_words_a_model_can_use(output_type: Any, raw: str, says: str):
    with pytest.raises(ValueError, match="^" + says):
        OutputContract(output_type).validate(raw)


@pytest.mark.parametrize(
    ("output_type", "output"),
    [
        (Invoice, INVOICE),
        (set[int], {1, 2}),
        (date, date(2026, 5, 1)),
        (dict[int, tuple[str, ...]], {1: ("a", "b")}),
        (Path, Path("some/file")),
        (bytes, b"\x00\xff"),
        (Invoice | None, None),
    ],
)
def test_an_output_comes_back_from_its_plain_form(output_type: Any, output: Any):
    contract = OutputContract(output_type)
    plain = contract.dump(output)
    assert_plain(plain)
    assert contract.load(plain) == output


def assert_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            assert type(key) is str
            assert_plain(item)
    elif isinstance(value, list):
        for item in value:
            assert_plain(item)
    else:
        assert value is None or type(value) in {str, int, float, bool, bytes, Decimal}


def test_an_output_without_a_plain_form_is_named():
    with pytest.raises(UnpersistableValueError, match="object"):
        OutputContract(object).dump(object())
    with pytest.raises(UnpersistableValueError, match="Invoice"):
        OutputContract(Invoice).dump(Invoice.model_construct(number=object(), due=object()))


def test_a_type_that_means_nothing_to_pydantic_is_refused_when_the_agent_is_made():
    class Opaque:
        pass

    with pytest.raises(AgentDefinitionError, match="Opaque"):
        OutputContract(Opaque)


def test_a_type_without_a_schema_for_the_model_is_refused_when_the_agent_is_made():
    class Holder(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)

        call: Callable[[], int]

    with pytest.raises(AgentDefinitionError, match="Holder"):
        OutputContract(Holder)
