"""16 images of 8 customers: in one batch by stacked adapters, and one customer at a time, in rounds that alternate.

Wall time, and CPU time, which other processes on the machine change less. The base is the shipped ``mini``; the
adapters are random, of ranks 4 to 16, in real personal bundles: their passes take as long as those of trained ones.
Each image is compared with the one that peft's layers give alone.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lookalike.bundles.build import materialise
from lookalike.bundles.locate import locate_bundle
from lookalike.diffusion.loading import load_pipeline
from lookalike.diffusion.stacked import PersonalImage, StackedPipeline
from lookalike.models.presets import LoraConfig, load_preset
from tests.bench.measured import keep
from tests.personal import personal_bundle

CUSTOMERS, EACH, STEPS = 8, 2, 12
ROUNDS = int(os.environ.get("LOOKALIKE_BENCH_ROUNDS", "11"))
THREADS = int(os.environ.get("LOOKALIKE_BENCH_THREADS", "2"))
RANKS = (4, 8, 16, 16)
GOAL = 1.3
_READ = """
import resource, time
from pathlib import Path
from pipelines.generate.config import GenerateConfig
from pipelines.generate.requests import Request, RequestFile
started = time.perf_counter()
config = GenerateConfig(requests={file!r}, out="/tmp/out")
assert all(isinstance(each, Request) for each in RequestFile(config, Path({folder!r})))
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
Arm = Callable[[], list[Any]]


def _images(folder: Path) -> list[PersonalImage]:
    """Two images of each customer, with one reference."""
    base, random, images = materialise(load_preset("mini"), folder / "base"), np.random.default_rng(0), []
    for customer in range(CUSTOMERS):
        lora = LoraConfig(rank=RANKS[customer % len(RANKS)])
        place = personal_bundle(base, folder / str(customer), customer, lora=lora, owner=f"c{customer}--mug")
        photo = np.kron(random.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((20, 16, 1), np.uint8))
        for seed in range(EACH):
            prompt = ["a red mug on grass", "a mug on the wet sand of a beach"][seed % 2]
            images.append(PersonalImage(locate_bundle(str(place)), prompt, [photo], seed))
    return images


def test_many_customers_in_one_batch(bench_folder: Path) -> None:
    torch.set_num_threads(THREADS)
    images = _images(bench_folder / "generate-for-many")
    groups = [images[first : first + EACH] for first in range(0, len(images), EACH)]
    settings = {"num_inference_steps": STEPS}
    stacked = StackedPipeline(images[0].bundle.whole, "cpu", 1 << 30)
    peft = [load_pipeline(group[0].bundle, "cpu") for group in groups]

    def of_peft(number: int, rows: list[PersonalImage]) -> list[Any]:
        prompts, references = [row.prompt for row in rows], [list(row.references) for row in rows]
        done = peft[number](prompts, references, seeds=[row.seed for row in rows], **settings)
        return list(done.images)

    arms: dict[str, Arm] = {
        "one batch": lambda: stacked(images, **settings),
        "one customer at a time": lambda: [image for n, rows in enumerate(groups) for image in of_peft(n, rows)],
    }
    for arm in (stacked, lambda rows, **_: of_peft(0, rows)):
        arm(groups[0], **settings)  # what is slow the first time
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    cpu: dict[str, list[float]] = {name: [] for name in arms}
    results: dict[str, list[Any]] = {}
    for number in range(ROUNDS):
        for name in list(arms)[:: 1 if number % 2 else -1]:
            started, used = time.perf_counter(), time.process_time()
            results[name] = arms[name]()
            seconds[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - used)
            print(f"round {number}: {name}: {seconds[name][-1]:.1f} s", flush=True)
    differences = [
        int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())
        for one, other in zip(results["one batch"], results["one customer at a time"], strict=True)
    ]
    record = {
        "command": "OMP_WAIT_POLICY=passive python -m pytest tests/bench/test_generate_for_many.py -k one_batch -s",
        "images": f"{EACH} of each of {CUSTOMERS} customers, {STEPS} steps with guidance, mini, ranks {RANKS}",
        "threads": THREADS,
        "wall": _compared(seconds),
        "cpu": _compared(cpu),
        "largest_difference_of_255": max(differences),
    }
    keep("generate-for-many", record)
    assert max(differences) <= 1
    assert record["wall"]["times_faster"]["median"] >= GOAL  # type: ignore[index]


def test_memory_of_a_file_of_requests(bench_folder: Path) -> None:
    """Read a file of requests to its end, as a job does before it generates anything."""
    record: dict[str, Any] = {"command": "python -m pytest tests/bench/test_generate_for_many.py -k memory -s"}
    for lines in (10_000, 1_000_000):
        file = bench_folder / f"requests-{lines}.jsonl"
        with file.open("w") as out:
            for number in range(lines):
                request: dict[str, Any] = {
                    "id": f"mug-{number}",
                    "model": "models:/acme--mug@champion",
                    "reference": "s3://b/mug",
                }
                request |= {"prompt": "a red mug on the wet sand of a beach", "seed": number}
                out.write(json.dumps(request) + "\n")
        code = _READ.format(file=str(file), folder=str(bench_folder))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds, kib = done.stdout.split()
        record[str(lines)] = {"seconds": round(float(seconds), 1), "peak_mib": int(kib) // 1024}
        file.unlink()
    keep("generate-for-many-requests", record)
    assert record["1000000"]["peak_mib"] < record["10000"]["peak_mib"] + 128


def _compared(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Seconds of each round, and how many times faster one batch is."""
    one, each = seconds["one batch"], seconds["one customer at a time"]
    ratios = [round(slow / fast, 2) for fast, slow in zip(one, each, strict=True)]
    faster = {"median": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)}
    rounds = {name: [round(value, 2) for value in values] for name, values in seconds.items()}
    return {"seconds": rounds, "times_faster": faster}
