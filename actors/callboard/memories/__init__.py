"""The memories that come with Callboard."""

from callboard.memories.window import WindowMemory

__all__ = ["WindowMemory"]
