"""The pytest plugin. A package of its own, so that pytest can load it without importing Callboard."""
