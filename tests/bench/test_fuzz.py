"""Fuzz images, tars, JSON, Parquet, bundles and control files for half an hour: each gives rows or an error.

``LOOKALIKE_FUZZ_SECONDS`` sets the time, ``LOOKALIKE_FUZZ_SEED`` a seed that an earlier run printed, and
``LOOKALIKE_FUZZ_ONLY`` the beginning of kinds' names. What failed is kept below ``LOOKALIKE_FUZZ_FOLDER``.
"""

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bench.measured import keep
from tests.conftest import REPO

_SECONDS = float(os.environ.get("LOOKALIKE_FUZZ_SECONDS", 1800))
_STUCK_S = 120.0  # on one input


@pytest.mark.timeout(_SECONDS + 900)
def test_damaged_files_give_rows_or_errors(tmp_path: Path) -> None:
    seed = os.environ.get("LOOKALIKE_FUZZ_SEED") or secrets.token_hex(4)
    folder = Path(os.environ.get("LOOKALIKE_FUZZ_FOLDER") or tmp_path)
    only = tuple(filter(None, [os.environ.get("LOOKALIKE_FUZZ_ONLY")]))
    print(f"LOOKALIKE_FUZZ_SEED={seed}, findings below {folder}", flush=True)
    findings: list[dict[str, Any]] = []
    counts: dict[str, list[int]] = {}
    ends = time.monotonic() + _SECONDS
    attempt = 0
    while (left := ends - time.monotonic()) > 0 and attempt < 50:
        place = folder / f"{seed}-{attempt}"
        found, done = _worker(f"{seed}-{attempt}", left, place, only)
        findings += found
        for name, pair in done.items():
            counts[name] = [a + b for a, b in zip(counts.get(name, [0, 0]), pair, strict=True)]
        attempt += 1
        if done or any(item["target"] == "the seeds" for item in found):
            break
    record = {"seed": seed, "seconds": _SECONDS, "inputs and errors": counts, "findings": findings}
    if only or _SECONDS < 1800:
        print(json.dumps(record, indent=1))
    else:
        keep("fuzz", record)
    assert findings == []
    assert sum(inputs for inputs, _ in counts.values()) > 0


def _worker(
    seed: str, seconds: float, folder: Path, only: tuple[str, ...]
) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
    """(findings, counts) of one process; one that died or hung is a finding itself, and has no counts."""
    folder.mkdir(parents=True)
    output = folder / "output.jsonl"
    argv = [sys.executable, "-m", "tests.bench.fuzz_worker", seed, str(seconds), str(folder), *only]
    with output.open("w") as file, (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(argv, cwd=REPO, stdout=file, stderr=errors)
    note, stuck = folder / "current.json", False
    while process.poll() is None:
        time.sleep(1)
        stuck = note.exists() and time.time() - note.stat().st_mtime > _STUCK_S
        if stuck:
            process.kill()
            process.wait()
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    findings = [line for line in lines if "problem" in line]
    counts = next((line["counts"] for line in lines if "counts" in line), {})
    if not counts:
        said = (folder / "stderr").read_text()[-1500:]
        current = json.loads(note.read_text()) if note.exists() else {"case": "none", "target": "the seeds"}
        problem = f"stuck for {_STUCK_S:.0f} s" if stuck else f"the process ended with {process.returncode}: {said}"
        kept = folder / "findings" / "last.bin"
        if (folder / "current.bin").exists():
            kept.parent.mkdir(exist_ok=True)
            (folder / "current.bin").replace(kept)
        findings.append({**current, "problem": problem, "input": str(kept)})
    return findings, counts
