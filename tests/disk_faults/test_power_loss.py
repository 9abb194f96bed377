"""A power cut at any instant: what was acknowledged is there, and no batch is there in part.

A writer's system calls are traced, and the data file is rebuilt as a disk may hold it at any point of the trace: what
was synced is there, and of what was not, any sectors, in any order. Each state is opened by a process of its own.
"""

from __future__ import annotations

import pytest

BATCHES = 20
"""Of each of four sessions."""

STATES = 200


def test_the_trace_tells_all_that_was_written(traced):
    trace = traced(BATCHES)
    disk, told = trace.until(len(trace.events))
    written = (trace.directory / "data.mdb").read_bytes()
    assert bytes(disk.files[disk.names[-1]]) == written
    assert not disk.pending
    assert sum(line.startswith("committed") for line in told) == 4 * BATCHES


def test_a_power_cut_loses_nothing_acknowledged_and_leaves_no_batch_in_part(traced, power_cuts):
    assert power_cuts.outcomes(traced(BATCHES), range(STATES)) == {}


def test_a_power_cut_while_a_directory_is_made_leaves_one_that_opens(traced, power_cuts):
    trace = traced(1)
    opened = next(at for at, event in enumerate(trace.events) if event["kind"] == "said")
    assert power_cuts.outcomes(trace, range(STATES // 4), within=opened + 1) == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_power_cuts_lose_nothing(traced, power_cuts):
    assert power_cuts.outcomes(traced(10 * BATCHES), range(10_000)) == {}


def test_a_writer_that_does_not_sync_is_caught(traced, power_cuts):
    bad = power_cuts.outcomes(traced(BATCHES, unsafe="no-sync"), range(40))
    assert len(bad) > 20, bad


def test_a_writer_that_does_not_sync_its_directory_is_caught(traced, power_cuts):
    bad = power_cuts.outcomes(traced(BATCHES, unsafe="no-names"), range(40))
    assert len(bad) > 10
    assert all("not at" in outcome["what"] for outcome in bad.values()), bad
