"""One attempt of a run, from how it begins to how it ends or leaves the run to a further one."""
