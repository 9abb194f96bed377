"""A worker that forks a session and goes back in each fork is killed at instants nobody chose."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from callboard_storage import upkeep
from callboard_storage.lmdb_store import LmdbStore

KILLS = 12
STRIDES = 200


def test_every_fork_is_whole_or_not_there_and_every_way_back_is_gone_once(theatre: Any, laws: Any) -> None:
    chance = random.Random(5)  # noqa: S311  (chance, no secret)
    struck = []
    for number in range(KILLS):
        life = theatre.life("traveller")
        word = ("forking", "going", "forked")[number % 3]
        life.wait_for(word, chance.randint(1, 3))
        instant = time.monotonic() + chance.uniform(0, 0.02 if word == "forking" else 0.004)
        while time.monotonic() < instant:
            pass
        struck.append(life.kill())
    theatre.world.with_suffix(".stop").touch()
    theatre.survives("traveller")
    assert "forking" in struck, "no kill struck a fork"

    remains = laws.hold(theatre)
    assert upkeep.verify(theatre.data).is_sound
    forks = remains.transcripts.keys() - {"source"}
    assert forks >= {words[1] for words in theatre.happened if words[0] == "forked"}
    whole = asyncio.run(lengths(theatre.data, forks))
    assert set(whole.values()) == {STRIDES + 2}, whole
    results = theatre.results()
    for run_id, entry in remains.entries.items():
        if run_id != "seed":
            step = int(entry.request.resume_from_checkpoint.rpartition(":")[2])
            assert results.get(run_id, ["completed", f"walked {step + 2}"]) == ["completed", f"walked {step + 2}"]
            assert [message.text for message in remains.transcripts[entry.session_id]] == [
                str(STRIDES),
                *([] if step < STRIDES else [f"walked {STRIDES}"]),
                "2",
                f"walked {step + 2}",
            ]


async def lengths(data: Any, sessions: Any) -> dict[str, int]:
    """How many records each fork has of the session it was forked from."""
    store = LmdbStore(data, map_size=1 << 30)
    await store.open()
    try:
        logs = {session_id: await store.read_log(session_id) for session_id in sessions}
        return {session_id: sum(stored.record.run_id == "seed" for stored in log) for session_id, log in logs.items()}
    finally:
        await store.close()
