"""Pretrain a preset's VAE or MLLM alone, before the whole model is trained."""

from pathlib import Path
from typing import Any

from lookalike.bundles.build import materialise
from lookalike.models.presets import load_preset
from lookalike.scratch import scratch
from lookalike.storage import open_store
from lookalike.storage.claim import read_result, run_once, write_result
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.mllm import pretrain_mllm
from pipelines.pretrain.subjects import read_subjects
from pipelines.pretrain.vae import pretrain_vae

_RESULT = "result.json"


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Train the part, measure it on held-out subjects, save it; return and record the measurements.

    Raises:
        InputError: no usable image in the shards.
        ConflictError: ``out`` holds a run of another configuration.
    """
    run = Path(config.out) / f"{config.part}-run"
    store = open_store(str(run))

    def work(fingerprint: str) -> dict[str, Any]:
        with scratch("pretrain") as folder:
            # From the seed, without the weights that the preset ships.
            fresh = load_preset(config.preset).from_seed("mllm", "vae", "transformer", "aggregator")
            initial = materialise(fresh, folder / "bundle", config.fit.seed)
            train, held_out = read_subjects(config)
            measure = pretrain_vae if config.part == "vae" else pretrain_mllm
            result = measure(config, initial, train, held_out, run)
        write_result(store, _RESULT, result, fingerprint)
        return result

    def earlier(fingerprint: str) -> dict[str, Any]:
        return read_result(store, _RESULT, fingerprint, {})[0]

    return run_once(store, _RESULT, config, earlier=earlier, work=work)
