"""Customers of the sample world and their requests, for the benches of the fleet.

Everything lies below one folder; what exists is reused.
"""

import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from safetensors.torch import load_file

from lookalike.bundles.build import materialise
from lookalike.models.presets import load_preset
from lookalike.storage import list_versions, open_store
from pipelines.actors import ActorConfig
from pipelines.curate import CurateConfig, curate
from pipelines.entry import ray_session
from pipelines.ingest import IngestConfig, ingest
from pipelines.ingest.config import SampleWorldConfig
from tests.conftest import job_environment

CUSTOMERS = 8
_PHOTOS = SampleWorldConfig(seed=83, subjects=CUSTOMERS, views=8, defects=False)
_OTHERS = SampleWorldConfig(seed=84, subjects=8, views=4, defects=False)


@dataclass(frozen=True)
class FleetWorld:
    """The base, the data set of other subjects, and a folder of photos for each customer."""

    base: str
    others: str
    photos: list[Path]


def fleet_world(folder: Path) -> FleetWorld:
    """Make what is missing below ``folder``."""
    base, others, photos = folder / "base", folder / "others", folder / "photos"
    if not (base / "bundle.json").exists():
        materialise(load_preset("mini"), base)
    if not list_versions(open_store(str(others / "dataset"))):
        with ray_session():
            ingest(IngestConfig(source="sample", raw=str(others / "raw"), sample=_OTHERS))
            curate(CurateConfig(raw=str(others / "raw"), dataset=str(others / "dataset"), actors=ActorConfig(count=0)))
            ingest(IngestConfig(source="sample", raw=str(folder / "raw"), photos=str(photos), sample=_PHOTOS))
    subjects = sorted(path for path in photos.iterdir() if path.is_dir())
    assert len(subjects) == CUSTOMERS, subjects
    return FleetWorld(str(base), str(others / "dataset"), subjects)


def write_request(requests: Path, number: int, photos: Path, **settings: Any) -> dict[str, Any]:
    """Write the request of customer ``number`` into the folder ``requests``, and return its settings."""
    request = {"customer": f"c{number:02d}", "subject": "thing", "photos": str(photos), "seed": number, **settings}
    requests.mkdir(parents=True, exist_ok=True)
    (requests / f"c{number:02d}.yaml").write_text(yaml.safe_dump(request))
    return request


def adapter_of(store: Path, number: int) -> torch.Tensor:
    """All weights of the adapter of customer ``number`` in a store, one after the other."""
    files = sorted((store / "customers" / f"c{number:02d}").rglob("bundle/**/*adapter*.safetensors"))
    assert len(files) == 1, files
    return torch.cat([tensor.flatten().double() for _, tensor in sorted(load_file(files[0]).items())])


@dataclass
class Timed:
    """A process that has ended."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    """Of it and its descendants, sampled: what a process uses in its last tenths of a second is not in it."""
    marked_s: float | None = None
    """When the file ``mark`` appeared, s since the start."""
    load: float = 0.0
    """Mean load of the machine, this process's own included."""


def timed(argv: Sequence[str], log: Path, mark: Path | None = None) -> Timed:
    """Run a command to its end; its output goes to ``log``. Raises AssertionError if it fails."""
    result, cpu, loads, began = Timed(), dict[int, float](), [], time.perf_counter()
    with log.open("wb") as file:
        process = psutil.Popen(
            argv, stdout=file, stderr=subprocess.STDOUT, env=job_environment({"OMP_NUM_THREADS": "2"})
        )
        while process.poll() is None:
            if mark is not None and result.marked_s is None and mark.exists():
                result.marked_s = time.perf_counter() - began
            with suppress(psutil.Error):
                for each in [process, *process.children(recursive=True)]:
                    with suppress(psutil.Error):
                        cpu[each.pid] = sum(each.cpu_times()[:2])
            loads.append(os.getloadavg()[0])
            time.sleep(0.2)
    result.wall_s, result.cpu_s, result.load = time.perf_counter() - began, sum(cpu.values()), statistics.mean(loads)
    assert process.returncode == 0, log.read_text()[-3000:]
    return result
