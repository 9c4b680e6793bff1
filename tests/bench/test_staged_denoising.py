"""Measure the stages of denoising: absent tokens against masked ones, cached references against full attention.

    python -m pytest tests/bench/test_staged_denoising.py -s        # three quarters of an hour on one slow core

Times one step of each kind, interleaved, and weighs them by the paper's schedule of 25 steps at 512² (3 MLLM, 4 both,
18 references). On ``mini``, and on a slice of the paper's DiT (its widths, two double and two single blocks, random
weights). The DiT alone: what runs once an image (MLLM, VAE) is not in it. A CPU without bfloat16 instructions takes ten
times as long in bfloat16. Writes results/staged-denoising.json after every round: a run that is stopped leaves what it
has.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from lookalike.models.dit import Context, References, prepare_references, velocity
from lookalike.models.presets import ReferenceConfig, load_preset
from tests.bench.measured import keep

SCHEDULE = {
    "mllm": 3,
    "both": 4,
    "references": 18,
}  # of 25 steps at 1,024 tokens; test_stages.py pins it
STEPS = sum(SCHEDULE.values())
CACHED = ReferenceConfig(attention="cached")
PAPER = {
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
SLICE = {"config": PAPER, "side": 32, "batch": 1, "per_image": 256, "text": 64, "dtype": torch.bfloat16, "rounds": 3}
MINI = {
    "config": load_preset("mini").transformer.config,
    "side": 8,
    "batch": 8,
    "per_image": 18,
    "text": 6,
    "dtype": torch.float32,
    "rounds": 25,
}
CASES = {
    "mini, 1 reference, float32": {**MINI, "references": 1},
    "mini, 2 references, float32": {**MINI, "references": 2},
    "mini, 1 reference, bfloat16": {**MINI, "references": 1, "dtype": torch.bfloat16, "rounds": 9},
    "paper's widths, 1 reference, bfloat16": {**SLICE, "references": 1},
    "paper's widths, 2 references, bfloat16": {**SLICE, "references": 2},
}

pytestmark = pytest.mark.timeout(7200)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_time_of_each_kind_of_step(name: str) -> None:
    case = CASES[name]
    kinds = _kinds(case)
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for run in kinds.values():
        run()  # the first call of a shape is slower
    for _ in range(case["rounds"]):
        for kind, run in kinds.items():
            started = time.perf_counter()
            run()
            times[kind].append(time.perf_counter() - started)
        done = {"batch": case["batch"], "rounds": len(times[kind]), "threads": torch.get_num_threads()}
        keep("staged-denoising", done | _summary(times), name)


def _kinds(case: dict[str, Any]) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(**case["config"]).to(case["dtype"]).eval()
    batch, tokens, slots = case["batch"], case["side"] ** 2, case["references"]
    length = case["per_image"] * slots + case["text"]
    grid = (case["side"], case["side"])
    channels = model.config.in_channels
    noisy, sigma = torch.randn(batch, tokens, channels), torch.full((batch,), 0.5)
    words = torch.randn(batch, length, model.config.joint_attention_dim)
    latents = torch.randn(batch, slots, tokens, channels)

    def seen(count: int, visible: bool = True) -> torch.Tensor:
        return torch.full((batch, count), visible)

    context, full = Context(words, seen(length)), References(latents, seen(slots), grid)
    no_context, no_references = Context(words, seen(length, False)), References(latents, seen(slots, False), grid)
    keys = prepare_references(model, full, grid, CACHED)

    def step(context: Any, references: Any) -> Callable[[], object]:
        return lambda: velocity(model, noisy, sigma, grid, context, references, "diagonal", 1.0)

    return {
        "masked mllm": step(context, no_references),
        "masked both": step(context, full),
        "masked references": step(no_context, full),
        "mllm": step(context, None),
        "both": step(context, full),
        "references": step(None, full),
        "nothing": step(None, None),
        "cached both": step(context, keys),
        "cached references": step(None, keys),
        "cached once": lambda: prepare_references(model, full, grid, CACHED),
    }


def _summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and extremes: seconds of a kind, and ratios of whole loops by round, so that drift cancels."""

    def loop(seconds: dict[str, float], prefix: str = "", others: str = "") -> float:
        return sum(n * seconds[(prefix if k != "mllm" else others) + k] for k, n in SCHEDULE.items())

    rounds = [dict(zip(times, values, strict=True)) for values in zip(*times.values(), strict=True)]
    ratios: dict[str, list[float]] = {}
    for seconds in rounds:
        masked = loop(seconds, "masked ", "masked ")
        full, cached = loop(seconds), loop(seconds, "cached ") + seconds["cached once"]
        negative = STEPS * seconds["nothing"]  # of true guidance, where the negative branch drops everything
        for ratio, value in {
            "masked / absent": masked / full,
            "absent / cached": full / cached,
            "masked / cached": masked / cached,
            "absent / cached, with guidance": (full + negative) / (cached + negative),
        }.items():
            ratios.setdefault(ratio, []).append(value)
    return {
        "seconds": {kind: _spread(values) for kind, values in times.items()},
        "ratios": {ratio: _spread(values) for ratio, values in ratios.items()},
    }


def _spread(values: list[float]) -> dict[str, float]:
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: float(f"{value:.4g}") for name, value in found.items()}
