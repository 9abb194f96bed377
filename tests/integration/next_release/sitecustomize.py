"""Makes any process with this directory on its path one of "the next release".

Python imports this before anything else. It has a second version of the record of a step, with an upcaster from the
first, a table that today's release does not know, and a release number of its own.
"""

from typing import Any

from callboard_protocol import _version

_version.__version__ = "99.1.0"

from callboard_storage import batch, codec  # noqa: E402
from callboard_storage.schemas import PARTS, SCHEMAS, Schema, Schemas  # noqa: E402

STEP_COMPLETED = 3


def _from_first(body: dict[str, Any]) -> dict[str, Any]:
    name = body.get("name", "")
    changed = {"swells": {"value": "x" * 100_000}, "shrinks": {"value": "x" * 10}}.get(name, {})
    return {**body, **changed, "name": f"{name} (as version 1 wrote it)"}


_SECOND = [Schema(one.id, 2, one.model, {1: _from_first}) if one.id == STEP_COMPLETED else one for one in SCHEMAS]
# In place: whoever encodes or decodes has got hold of it already.
codec.CODEC.__init__(Schemas(_SECOND), PARTS)  # type: ignore[misc]
batch.TABLES = (*batch.TABLES, "novelties")  # type: ignore[misc, assignment]
