"""Models: the base class, and those that come with Callboard."""

from callboard.models.base import Model, resolve_model
from callboard.models.scripted import ScriptedModel, ScriptItem

__all__ = ["Model", "ScriptedModel", "ScriptItem", "resolve_model"]
