"""What a fleet of finetunes costs: against one cold job after the other, against one run after the other in a warm
process, and in memory.

    LOOKALIKE_BENCH_FOLDER=/tmp/bench nice -n 5 python -m pytest tests/bench/test_finetune_fleet.py -s
"""

import ctypes
import gc
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from lookalike.bundles.load import load_model
from lookalike.diffusion.flow import FlowConfig
from lookalike.models.presets import LoraConfig
from lookalike.models.stacked_lora import AdapterStack, new_adapter
from lookalike.models.vae import load_vae
from lookalike.training.config import TrainConfig
from lookalike.training.loop_config import CheckpointConfig
from lookalike.training.shared_passes import SharedPasses
from tests.bench.fleet_world import CUSTOMERS, FleetWorld, Timed, adapter_of, fleet_world, timed, write_request
from tests.bench.measured import keep
from tests.conftest import REPO
from tests.unit.training.test_shared_passes import Customer, Setup

COLD = 2  # cold jobs; they take equally long
ROUNDS = 8
SETTINGS = {"budget": "fast", "micro_batch_size": 8}
FLEETS: dict[str, list[str]] = {
    "two actors": ["--workers", "2", "--at_once", "2"],
    "one process": ["--at_once", "4"],
}


def test_finetunes_per_hour(bench_folder: Path) -> None:
    """Cold jobs and fleets take turns; a part that is done is not done again."""
    world, out = fleet_world(bench_folder / "fleet"), bench_folder / "fleet-speed"
    out.mkdir(parents=True, exist_ok=True)
    cold: list[dict[str, Any]] = []
    fleets: dict[str, dict[str, Any]] = {}
    for number, (name, flags) in enumerate(FLEETS.items()):
        cold.append(_once(out / f"cold-{number}.json", partial(_cold, world, out, number)))
        fleets[name] = _once(out / f"fleet-{number}.json", partial(_fleet, world, out, name.replace(" ", "-"), flags))
        _keep(cold, fleets)


def _keep(cold: list[dict[str, Any]], fleets: dict[str, dict[str, Any]]) -> None:
    wall, cpu = (statistics.median(job[name] for job in cold) * CUSTOMERS for name in ("wall_s", "cpu_s"))
    for row in fleets.values():
        row["finetunes per hour, of cold jobs"] = round(wall / row["wall_s"], 2)
        row["without the start, of cold jobs"] = round(wall / (row["wall_s"] - row["start_s"]), 2)
        row["CPU of cold jobs over that of the fleet"] = round(cpu / row["cpu_s"], 2)
    keep("finetune-fleet", {"cold": cold, "requests": CUSTOMERS, "fleets": fleets}, "speed")


def _once(file: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if not file.exists():
        file.write_text(json.dumps(measure()))
    row: dict[str, Any] = json.loads(file.read_text())
    print(f"{file.stem}: {row}", flush=True)
    return row


def _cold(world: FleetWorld, out: Path, number: int) -> dict[str, Any]:
    argv = [sys.executable, str(REPO / "jobs" / "finetune.py"), "run", *_places(world, out / "cold")]
    argv += ["--customer", f"c{number:02d}", "--subject", "thing", "--photos", str(world.photos[number])]
    argv += ["--seed", str(number), "--workers.num_workers", "0", "--workers.threads_per_worker", "2"]
    argv += ["--actors.count", "0", "--actors.threads", "2"]
    argv += [word for key, value in SETTINGS.items() for word in (f"--{key}", str(value))]
    return _row(timed(argv, out / f"cold-{number}.log"))


def _fleet(world: FleetWorld, out: Path, name: str, flags: list[str]) -> dict[str, Any]:
    shutil.rmtree(out / name, ignore_errors=True)
    requests = out / name / "requests"
    for number, photos in enumerate(world.photos):
        write_request(requests, number, photos, **SETTINGS)
    argv = [sys.executable, str(REPO / "jobs" / "finetune_fleet.py"), "--requests", str(requests), *flags]
    done = timed([*argv, *_places(world, out / name)], out / f"{name}.log", requests / "leases")
    assert len(list((requests / "done").iterdir())) == CUSTOMERS
    apart = [_apart(out / "cold", out / name, number) for number in range(COLD) if _is_there(out / "cold", number)]
    assert done.marked_s is not None
    assert max(apart) < 1e-4
    return {**_row(done), "start_s": round(done.marked_s, 1), "greatest difference to cold adapters": max(apart)}


def _places(world: FleetWorld, out: Path) -> list[str]:
    out.mkdir(parents=True, exist_ok=True)
    places = {"store": out / "store", "model": world.base, "distractors": world.others}
    flags = [word for name, value in places.items() for word in (f"--{name}", str(value))]
    return [*flags, "--tracking", f"sqlite:///{out}/mlflow.db"]


def _is_there(out: Path, number: int) -> bool:
    return (out / "store" / "customers" / f"c{number:02d}").exists()


def _apart(one: Path, other: Path, number: int) -> float:
    """Norm of the difference of two adapters, relative to that of the first one."""
    ours, theirs = adapter_of(one / "store", number), adapter_of(other / "store", number)
    return float((ours - theirs).norm() / ours.norm())


def _row(done: Timed) -> dict[str, Any]:
    return {"wall_s": round(done.wall_s, 1), "cpu_s": round(done.cpu_s, 1), "load": round(done.load, 1)}


class _Steps(Setup):
    """Runs of the unit tests, without checkpoints on the way."""

    def config(self, customer: Customer) -> TrainConfig:
        return replace(super().config(customer), checkpoint=CheckpointConfig(every=10_000))


class _Shared:
    """Runs of customers that train in shared passes, each with a step of ``samples``."""

    def __init__(self, bundle: Path, folder: Path, samples: int, max_rows: int) -> None:
        self._model, vae = load_model(bundle), load_vae(bundle)
        self._model.set_trainable(())
        self._samples, self._setup = samples, _Steps(bundle, vae, folder)
        self._stack = AdapterStack(self._model)
        self.passes = SharedPasses(self._stack, vae, FlowConfig.from_bundle(bundle), "cpu", max_rows)
        self.trained_bytes = 0

    def join(self, number: int) -> None:
        samples = self._samples
        customer = Customer(f"c{number}", LoraConfig(), steps=10_000, batch=samples, micro=samples, seed=number)
        adapter = new_adapter(self._model, customer.lora, number)
        loop = self._setup.loop(customer, self._stack.alone(adapter), adapter.parameters)
        assert self.passes.join(customer.name, loop, adapter, self._setup.batches(customer)) is None
        self.trained_bytes = sum(each.numel() * each.element_size() for each in adapter.parameters.values())


def test_batched_steps(bench_folder: Path, tmp_path: Path) -> None:
    """A step of several customers in shared passes, and in passes of one customer; the two take turns."""
    bundle, rows = Path(fleet_world(bench_folder / "fleet").base), []
    torch.set_num_threads(1)  # as a fleet does by default
    for samples, customers in ((2, 4), (2, 8), (8, 4)):
        together, alone = (
            _Shared(bundle, tmp_path / str(len(rows)) / str(most), samples, most) for most in (32, samples)
        )
        for shared in (together, alone):
            for number in range(customers):
                shared.join(number)
        seconds: dict[str, list[float]] = {"together": [], "alone": []}
        for _ in range(2 + ROUNDS):
            for name, shared in (("together", together), ("alone", alone)):
                began = time.perf_counter()
                assert shared.passes.step() == []
                seconds[name].append(time.perf_counter() - began)
        ratios = [a / t for a, t in zip(seconds["alone"][2:], seconds["together"][2:], strict=True)]
        row: dict[str, Any] = {"samples": samples, "customers": customers, "threads": torch.get_num_threads()}
        row |= {name: round(statistics.median(values[2:]), 3) for name, values in seconds.items()}
        row["alone / together"] = [round(value, 2) for value in statistics.quantiles(ratios, n=4)]
        rows.append(row)
        print(row, flush=True)
    keep("finetune-fleet", {"rounds": ROUNDS, "steps": rows}, "batched")


def test_memory_of_a_further_adapter(bench_folder: Path, tmp_path: Path) -> None:
    """Private memory with 4 and with 36 adapters in training: two samples each, eight in a pass."""
    shared = _Shared(Path(fleet_world(bench_folder / "fleet").base), tmp_path, 2, 8)
    private = []
    for numbers in (range(4), range(4, 36)):
        for number in numbers:
            shared.join(number)
        for _ in range(3):
            shared.passes.step()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # returns freed activations
        private.append(psutil.Process().memory_full_info().uss)
    state = 4 * shared.trained_bytes  # weights, gradients, two moments, all float32
    each = (private[1] - private[0]) / 32
    record = {"state_bytes": state, "bytes_of_a_further_one": round(each), "ratio": round(each / state, 2)}
    keep("finetune-fleet", record, "memory")
