"""Patterns: how a run thinks. An async function of a `RunContext` is one."""

from callboard.patterns.pattern import Pattern, resolve_pattern
from callboard.patterns.react import react

__all__ = ["Pattern", "react", "resolve_pattern"]
