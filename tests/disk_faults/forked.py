"""A server for checks that may end the process that makes them: each is made in a forked child.

Forking costs milliseconds where a new interpreter costs half a second, and there are hundreds of checks to make. The
server itself never opens a store, so nothing of LMDB is inherited.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

SECONDS = 30
"""What takes longer goes round in circles, and counts as a death."""

Job = dict[str, Any]
Outcome = dict[str, Any]


def serve(examine: Callable[[Job], Outcome]) -> None:
    """Answer each line of standard input, a job, with a line of standard output, its outcome.

    What `examine` raises gives ``{"verdict": "failed", "what": ...}``; a child that a signal ended gives
    ``{"verdict": "died", "what": "SIGSEGV"}``.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_in_child(examine, json.loads(line))) + "\n")
        sys.stdout.flush()


def _in_child(examine: Callable[[Job], Outcome], job: Job) -> Outcome:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)  # warnings of what is rebuilt, and LMDB's last words
        try:
            outcome = examine(job)
        except BaseException:
            outcome = {"verdict": "failed", "what": traceback.format_exc()}
        with open(writing, "w", encoding="utf-8") as answer:
            json.dump(outcome, answer)
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as answer:
        said = answer.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return {"verdict": "died", "what": signal.Signals(os.WTERMSIG(status)).name}
    outcome = json.loads(said)
    assert isinstance(outcome, dict)
    return outcome
