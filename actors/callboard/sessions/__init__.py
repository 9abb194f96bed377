"""What stands around a session's log: its commits, its checkpoints and forks, and which sessions are in memory."""
