"""The child process: import one peer, take one measurement, write it down, leave.

Started by the runner as ``python -m bench.child JOB.json RESULT.json``. It leaves through ``os._exit``: teardown is not
measured, and threads or finalisers that a peer leaves behind must not hold the harness.
"""

import asyncio
import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, cast

from bench.jobs import Job, Measure, Measurement


def load(path: str) -> Any:
    """Import ``module:attribute``."""
    module, attribute = path.split(":")
    return getattr(importlib.import_module(module), attribute)


def run_job(job: Job) -> Measurement:
    """Take the measurement the job names."""
    measure = cast("Measure", load(job.measure))
    return asyncio.run(measure(job))


def main(job_path: Path, result_path: Path) -> int:
    """Run the job in ``job_path`` and write its measurement, or its error, to ``result_path``."""
    job = Job.from_json(json.loads(job_path.read_text()))
    result: dict[str, Any]
    try:
        measurement = run_job(job)
        result = {"metrics": dict(measurement.metrics), "series": dict(measurement.series)}
    except Exception as error:
        traceback.print_exc()
        # The published results carry no paths of the machine they were taken on.
        said = str(error).replace(str(job.scratch), "SCRATCH").partition("\n")[0][:160]
        result = {"error": f"{type(error).__name__}: {said}"}
    result_path.write_text(json.dumps(result))
    return 1 if "error" in result else 0


if __name__ == "__main__":
    status = main(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
