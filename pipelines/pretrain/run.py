"""Pretrain a preset's VAE or MLLM alone, before the whole model is trained."""

import logging
from pathlib import Path
from typing import Any

from lookalike.bundles.build import materialise
from lookalike.config import to_dict
from lookalike.models.presets import load_preset
from lookalike.scratch import scratch
from lookalike.storage import open_store
from lookalike.storage.claim import claim, read_result, write_result
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.mllm import pretrain_mllm
from pipelines.pretrain.subjects import read_subjects
from pipelines.pretrain.vae import pretrain_vae

logger = logging.getLogger(__name__)


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Train the part, measure it on held-out subjects, save it; return and record the measurements.

    Raises:
        InputError: no usable image in the shards.
        ConflictError: ``out`` holds a run of another configuration.
    """
    out = Path(config.out)
    run = out / f"{config.part}-run"
    claimed = claim(open_store(str(run)), to_dict(config))
    if (run / "result.json").is_file():
        logger.info("%s is already complete", run)
        return read_result(open_store(str(run)), "result.json", claimed, {})[0]
    with scratch("pretrain") as folder:
        initial = _initial_bundle(config, folder / "bundle")
        train, held_out = read_subjects(config)
        measure = pretrain_vae if config.part == "vae" else pretrain_mllm
        result = measure(config, initial, train, held_out, run)
    write_result(open_store(str(run)), "result.json", result, claimed)
    return result


def _initial_bundle(config: PretrainConfig, folder: Path) -> Path:
    """Make a bundle from the seed, without the weights that the preset ships."""
    fresh = load_preset(config.preset).from_seed("mllm", "vae", "transformer", "aggregator")
    return materialise(fresh, folder, config.fit.seed)
