"""Record a measurement with the machine that it ran on."""

import datetime
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_CPU_INFO = Path("/proc/cpuinfo")


def keep(name: str, record: dict[str, Any], part: str | None = None) -> None:
    """Print a record and write it to ``results/NAME.json``, with the machine.

    With ``part``, only that key of the file is replaced.
    """
    record = record | {"machine": _machine()}
    print(json.dumps(record, indent=1), flush=True)
    file = RESULTS / f"{name}.json"
    if part is not None:
        record = (json.loads(file.read_text()) if file.exists() else {}) | {part: record}
    file.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def _machine() -> dict[str, Any]:
    """Processor, versions, load of the last minute, time."""
    models = [line.partition(": ")[2] for line in _CPU_INFO.read_text().splitlines() if "model name" in line]
    return {
        "processor": f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("deepspeed", "pyarrow", "ray", "torch") if _is_installed(name)},
        "load": round(os.getloadavg()[0], 1),
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
    }


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
