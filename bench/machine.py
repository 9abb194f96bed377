"""What the numbers were taken on: enough to compare runs, nothing that names the machine or its owner."""

import os
import platform
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


def describe(scratch: Path) -> dict[str, Any]:
    """Describe the machine, the disk under measurement and the versions of every library measured."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "file_system": file_system(scratch),
        "load_at_start": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


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
