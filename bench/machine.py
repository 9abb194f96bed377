"""What the numbers were taken on: enough to compare runs, nothing that names the machine or its owner."""

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

LIBRARIES = (
    "callboard",
    "pykka",
    "pydantic",
    "msgpack",
    "lmdb",
    "langgraph",
    "langgraph-checkpoint-sqlite",
    "dbos",
    "openai-agents",
    "pydantic-ai-slim",
    "autogen-core",
)


def describe(scratch: Path, commits_per_s: float | None) -> dict[str, Any]:
    """Describe the machine, the disk under measurement and the versions of every library measured.

    Args:
        scratch: a directory on the disk under measurement.
        commits_per_s: bare LMDB commits, one put each, one after the other, on that disk.
    """
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "file_system": file_system(scratch),
        "commits_per_s": None if commits_per_s is None else round(commits_per_s),
        "load_at_start": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def headline(machine: Mapping[str, Any]) -> str:
    """The machine in one line."""
    rate = machine["commits_per_s"]
    commits = f"{rate:,} bare LMDB commits/s ({1e6 / rate:,.0f} µs each)" if rate else "bare LMDB commits not measured"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, "
        f"load {machine['load_at_start']} at the start; {machine['file_system']}, {commits}"
    )


def file_system(path: Path) -> str:
    """The type of the file system that holds ``path``: the durable rows mean nothing on one that lives in memory."""
    holders = [part for part in psutil.disk_partitions(all=True) if path.resolve().is_relative_to(part.mountpoint)]
    return max(holders, key=lambda part: len(part.mountpoint)).fstype if holders else "unknown"


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
