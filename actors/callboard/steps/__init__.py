"""The steps that a pattern takes through its context, and those that a run takes by itself."""
