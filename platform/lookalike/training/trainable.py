"""Which parts of the model a training run trains, and the LoRAs that it adds."""

from lookalike.models.adapters import initialise_lora
from lookalike.models.presets import LoraConfig, load_preset
from lookalike.models.subject import Part, SubjectModel
from lookalike.training.config import TrainConfig


def adapter_of(config: TrainConfig) -> LoraConfig | None:
    """Return the LoRA that this run trains: its own, or the preset's; None if it trains the DiT itself."""
    return config.adapter or (None if config.base else load_preset(config.preset).lora)


def mllm_lora_of(config: TrainConfig) -> LoraConfig | None:
    """Return the LoRA that this run trains on the MLLM: the preset's, unless it trains a personal adapter."""
    return None if config.adapter else load_preset(config.preset).mllm.lora


def trainable_parts(config: TrainConfig) -> tuple[Part, ...]:
    """Return the parts for :meth:`SubjectModel.set_trainable`: a personal adapter is trained alone."""
    if config.adapter is not None:
        return ("transformer_lora",)
    encoder: tuple[Part, ...] = ("mllm_lora",) if mllm_lora_of(config) else ()
    return (*encoder, "aggregator", "transformer_lora" if adapter_of(config) else "transformer")


def add_loras(config: TrainConfig, model: SubjectModel) -> None:
    """Inject what this run trains as LoRA into a model whose weights are loaded.

    The run's seed determines the initial weights, the same on every rank.
    """
    if (adapter := adapter_of(config)) is not None:
        model.add_lora(adapter)
    if (lora := mllm_lora_of(config)) is not None:
        model.add_mllm_lora(lora)
    initialise_lora(dict(model.named_parameters()), config.seed)
