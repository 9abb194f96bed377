"""A damaged data file: what is read is what was written, or an error; where LMDB cannot cope, that is known beforehand.

Each damaged copy is opened, read from end to end, written to and read again by a process of its own.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from callboard_protocol.errors import StoreOpenError
from callboard_storage import upkeep
from callboard_storage.lmdb_store import LmdbStore

KINDS = ("bits", "page_heads", "meta_pages", "truncated", "zeroed_pages", "zeroed_sectors", "swapped_pages")

VERIFIED = 3
"""Silent losses and deaths of each kind that are held against `verify`, which starts a process for each."""


def copies(damaged: Any, kind: str, seeds: range) -> Any:
    """Each damaged copy's outcome, by its seed."""
    for seed in seeds:
        content = getattr(damaged.damage, kind)(random.Random(f"{kind} {seed}"))  # noqa: S311
        yield seed, damaged.serve(content)


def contained(damaged: Any, kind: str, seeds: range) -> None:
    """Hold a kind of damage to what docs/STORAGE.md says of it."""
    verified = 0
    for seed, outcome in copies(damaged, kind, seeds):
        assert outcome["verdict"] in {"served", "refused", "died"}, (seed, outcome)
        is_silent = outcome["verdict"] == "died"
        if outcome["verdict"] == "served":
            assert damaged.invented(outcome) == [], seed
            missing = damaged.missing(outcome)
            assert not [name for name in missing if name.startswith(("log ", "head "))], seed
            is_silent = bool(missing)
        if is_silent and verified < VERIFIED:
            verified += 1
            assert not upkeep.verify(damaged.directory).is_sound, (seed, outcome)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_never_read_as_other_data(damaged, kind):
    contained(damaged, kind, range(12))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_of_each_damage_are_never_read_as_other_data(damaged, kind):
    contained(damaged, kind, range(25, 1025))


def test_a_file_that_was_cut_short_never_ends_a_process(damaged):
    for seed, outcome in copies(damaged, "truncated", range(100, 130)):
        assert outcome == {"verdict": "refused", "what": "store_open"}, seed


def test_flipped_bits_in_the_meta_pages_never_end_a_process(damaged):
    for seed, outcome in copies(damaged, "meta_pages", range(100, 130)):
        assert outcome["verdict"] != "died", seed


def test_a_page_that_would_end_the_process_is_refused_where_the_store_is_verified_first(damaged):
    deaths = 0
    for _, outcome in copies(damaged, "zeroed_pages", range(60)):
        if outcome["verdict"] == "died":
            deaths += 1
            with pytest.raises(StoreOpenError, match="has damaged pages"):
                asyncio.run(LmdbStore(damaged.directory, map_size=1 << 30, verify_first=True).open())
            if deaths == VERIFIED:
                return
    pytest.fail(f"only {deaths} of these pages end a process, so this test shows little")
