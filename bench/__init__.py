"""Callboard's benchmarks: the same work in each system, side by side, in one run."""
