"""How much memory this process holds, in bytes."""

import gc
from pathlib import Path

import psutil  # type: ignore[import-untyped]


def resident_bytes() -> int:
    """Private memory of this process, after a full collection.

    On Linux this is ``RssAnon``: anonymous pages only, since LMDB's mapped file and shared libraries also count in RSS
    and belong to the page cache. Elsewhere it is the whole resident set.
    """
    # Two passes: the first may run finalisers whose leavings the second collects.
    gc.collect()
    gc.collect()
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)
