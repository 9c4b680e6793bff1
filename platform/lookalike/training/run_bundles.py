"""The bundles of a training run in its store: the initial one, and the one that it exports."""

from lookalike.bundles.build import materialise
from lookalike.bundles.manifest import ADAPTER, MANIFEST, BundleReference, check_preset, read_manifest
from lookalike.bundles.transfer import local_bundle, upload_bundle, verified_reference
from lookalike.diffusion.schedule import denoising_schedule
from lookalike.errors import InputError
from lookalike.models.components import component_config
from lookalike.models.presets import check_lora, load_preset
from lookalike.scratch import scratch
from lookalike.storage import Store
from lookalike.training.config import TrainConfig

INITIAL, BUNDLE = "initial", "bundle"


def initial_bundle(config: TrainConfig, store: Store) -> BundleReference:
    """Return the bundle that the run starts from: ``config.base``, or the preset's, which is built once in the store.

    Raises:
        InputError: a base that is incomplete, personal, of another preset, or with a LoRA that is not merged.
        ConfigError: a LoRA rank above the attention width; an unknown preset, or an invalid denoising schedule in it.
    """
    preset = load_preset(config.preset)
    denoising_schedule(preset.stages)
    if config.base is not None:
        reference = verified_reference(config.base)
        base = local_bundle(config.base)
        check_preset(base, preset.name)
        if read_manifest(base)["base"] is not None:
            raise InputError("the base is itself a personal bundle", value=config.base, fix="train on a whole bundle")
        if (base / ADAPTER).is_dir():
            raise InputError(
                "the base has a LoRA that is not merged, which this training run would leave out",
                value=config.base,
                fix="export the base with export_lora: merged",
            )
        if config.adapter is not None:
            check_lora(config.adapter, component_config(base, "transformer"))
        return reference
    initial = store.child(INITIAL)
    if not initial.exists(MANIFEST):
        with scratch("initial") as folder:
            preset = preset.from_seed("transformer", "aggregator") if config.from_seed else preset
            upload_bundle(materialise(preset, folder, config.seed), initial)
    return verified_reference(initial.uri)


def finished_bundle(store: Store) -> BundleReference | None:
    """Return the verified bundle that the run in ``store`` has exported; None if it has not exported one yet."""
    target = store.child(BUNDLE)
    return verified_reference(target.uri) if target.exists(MANIFEST) else None
