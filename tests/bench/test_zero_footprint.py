"""Compare the memory of two ranks of ZeRO-3 with the plan.

    python -m pytest tests/bench/test_zero_footprint.py -s

Writes results/zero-footprint.json.
"""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lookalike.bundles.build import materialise
from lookalike.models.costs import meta_model
from lookalike.models.presets import load_preset
from lookalike.training.footprint import zero3_states
from lookalike.training.workers import ZeroConfig
from tests.bench.measured import keep

RANKS = 2


def test_memory_of_two_ranks_is_as_planned(tmp_path) -> None:
    bundle = materialise(load_preset("mini"), tmp_path / "bundle")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = str(Path(__file__).with_name("zero_rank.py"))
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(RANKS), str(port), str(bundle)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * RANKS, "".join(outputs)[-4000:]
    held = json.loads(outputs[0].strip().splitlines()[-1])
    assert held.pop("bucket") == ZeroConfig().reduce_bucket * torch.float32.itemsize
    parameters = meta_model(load_preset("mini")).parameters()
    states = zero3_states(parameters, RANKS, torch.float32, ZeroConfig().keep_whole)
    kinds = ("frozen", "trainable", "whole", "optimizer", "gradients")
    planned = dict(zip(kinds, states.values(), strict=True))
    keep(
        "zero-footprint",
        {
            "command": "python -m pytest tests/bench/test_zero_footprint.py -s",
            "held_bytes": held,
            "planned_bytes": {kind: planned[kind] for kind in held},
            "held_over_planned": round(sum(held.values()) / sum(planned.values()), 5),
        },
    )
    assert sum(held.values()) == pytest.approx(sum(planned.values()), rel=0.01)
    for kind, size in held.items():
        assert size == pytest.approx(planned[kind], rel=0.01), kind
