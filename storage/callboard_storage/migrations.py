"""Upcasters: how the body of a record written by an earlier release becomes what this release reads.

An upcaster takes the decoded body of one schema version and returns the body of the next. It is plain data in, plain
data out: it runs after the frame's checksum held and before the model validates. Versions are never skipped, so each
release adds at most one upcaster per schema and never touches the ones before it.

Changing a field's default changes stored bodies too (bodies are written without defaults), so it needs a new version
and an upcaster that writes the old default out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Upcaster: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""The body of one version in, the body of the next version out."""

UPCASTERS: Mapping[int, Mapping[int, Upcaster]] = {}
"""By schema id, then by the version an upcaster starts from. Empty: every schema still has its first version."""
