"""What a run stands on while it is at work."""
