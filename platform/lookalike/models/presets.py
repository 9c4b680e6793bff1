"""Presets: a YAML file with every component of a model, its source, size and licence. A new one needs no code."""

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from functools import partial
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

import jsonargparse

from lookalike.config import read_config_file
from lookalike.errors import ConfigError
from lookalike.groups import check_groups, forbid_imports
from lookalike.models.aggregators import aggregator_of
from lookalike.models.limits import check_component, check_limit
from lookalike.process_wide import alone_in_process
from lookalike.values import Count, NonNegative, Positive, configuration

PRESETS_DIR = Path(__file__).parent / "presets"
ASSETS_DIR = Path(__file__).parents[1] / "assets"  # weights and word lists that ship

Side = Annotated[Count, partial(check_limit, limit="side")]
Width = Annotated[Count, partial(check_limit, limit="width")]
Layers = Annotated[NonNegative, partial(check_limit, limit="layers")]
SourcedPart = Literal["mllm", "vae", "transformer", "aggregator"]
ReferencePosition = Literal["diagonal", "index"]
ReferenceAttention = Literal["full", "cached"]


@configuration()
class ComponentConfig:
    """A component of a bundle: the source of its weights, and its configuration in its library's keys."""

    source: str | None = None
    """``package:mini/vae`` (shipped with this package), a local folder, a Hub id, or null: made from the seed."""
    subfolder: str | None = None
    """Folder inside the source that holds the component, as in a pipeline of diffusers."""
    revision: str | None = None
    """Commit of a Hub id."""
    config: dict[str, Any] = field(default_factory=dict)
    """The library's ``config.json`` keys; used if ``source`` is null, and for plans that load no weights."""
    licence: str | None = None
    """SPDX id or name of the licence of the weights; written to the bundle's manifest."""


@configuration("lora")
class LoraConfig:
    """A peft LoRA, on the DiT or on the MLLM's language model."""

    rank: Count = 16
    """Rank of the update."""
    alpha: float | None = None
    """The update is scaled by alpha / rank; null means alpha = rank."""
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Suffixes of the linear layers that get an update: the DiT's (``add_q_proj`` ... for the text stream), or for the
    MLLM those of its language model, such as ``q_proj``."""
    dropout: float = 0.0
    """Dropout before the down projection."""

    def __post_init__(self) -> None:
        if not self.target_modules:
            raise ConfigError("a LoRA without target_modules trains nothing", fix="name at least one, such as to_q")


@configuration("mllm")
class MllmConfig:
    """The joint encoder (a multimodal model of transformers), and the template of its input."""

    architecture: str = "InternVLForConditionalGeneration"
    """Class of transformers."""
    source: str | None = None
    """As in :class:`ComponentConfig`."""
    revision: str | None = None
    """Commit of a Hub id."""
    config: dict[str, Any] = field(default_factory=dict)
    """``config.json`` keys; used if ``source`` is null, and for plans that load no weights."""
    licence: str | None = None
    """SPDX id or name of the licence of the weights."""
    vocabulary: str | None = None
    """Word list of the tokenizer (a file of the shipped assets, one word a line); used if ``source`` is null."""
    template: str = "<|im_start|>{images}{prompt}<|im_end|>"
    """Text of one sample. In a causal model, text attends to the images only if they come first."""
    image_prefix: str = "<img>"
    """Text before the tokens of one image."""
    image_token: str = "<IMG_CONTEXT>"
    """Placeholder that the image's features replace."""
    image_suffix: str = "</img>"
    """Text after the tokens of one image."""
    image_size: Annotated[Count, partial(check_limit, limit="tile")] = 448
    """Side in pixels of the square tile that a reference is resized to (padded to keep its aspect)."""
    tokens_per_image: Annotated[Count, partial(check_limit, limit="tokens_per_image")] = 256
    """Placeholders of one tile: (image_size / patch_size × downsample_ratio)²."""
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted per RGB channel from values in [0, 1]."""
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divided by, per RGB channel."""
    max_prompt_tokens: Annotated[Count, partial(check_limit, limit="prompt_tokens")] = 128
    """Maximum tokens of a prompt, without the template."""
    lora: LoraConfig | None = None
    """LoRA of a base run on the language model; the export merges it into the weights. Null: the MLLM is frozen.
    ``--plan`` does not count the memory of its backward pass."""

    def __post_init__(self) -> None:
        for name in ("template", "image_prefix", "image_token", "image_suffix"):
            check_limit(f"the number of characters of mllm.{name}", len(getattr(self, name)), "template")
        check_component("mllm", self.config)
        try:
            places = [place for place in Formatter().parse(self.template) if place[1] is not None]
            # a width, as in {images:>1000000000}, would create text of any length
            names = [str(name) for _, name, width, conversion in places if not width and not conversion]
        except ValueError:  # a brace without its partner
            names = []
        if sorted(names) != ["images", "prompt"]:
            raise ConfigError(
                "mllm.template does not contain {images} and {prompt} once each and no other braces",
                value=self.template,
                fix="write it as in models/presets/mini.yaml; write a literal brace twice: {{",
            )


@configuration("aggregator")
class AggregatorConfig:
    """Layer aggregation and bridge: from all hidden states of the MLLM to the DiT's context tokens."""

    kind: str = "dla"
    """Name in :data:`~lookalike.models.aggregators.AGGREGATORS`."""
    inner_width: Width = 1536
    """Channels inside the aggregator; the MLLM's width is projected to it."""
    head_dim: Width = 128
    """Channels of one attention head; divides ``inner_width``."""
    layer_blocks: Layers = 2
    """Transformer blocks over the layer axis (LAP)."""
    refiner_blocks: Layers = 2
    """Transformer blocks over the token axis."""
    source: str | None = None
    """As in :class:`ComponentConfig`."""

    def __post_init__(self) -> None:
        aggregator_of(self.kind)


@configuration("references")
class ReferenceConfig:
    """Identity tokens: VAE latents of the references in the DiT's image sequence."""

    max_references: Annotated[Count, partial(check_limit, limit="references")] = 4
    """Maximum number of references of one sample."""
    height: Side = 512
    """Pixels; for the VAE, references are centre-cropped and resized to this size."""
    width: Side = 512
    """Pixels."""
    position: ReferencePosition = "diagonal"
    """Rotary ids: with ``diagonal`` reference k starts at the corner of the image before it (UNO); with ``index`` it
    keeps (h, w) and is numbered on the first axis (FLUX Kontext)."""
    attention: ReferenceAttention = "full"
    """``full``: reference tokens are computed in every step as the target's are (the paper). ``cached``: they attend to
    the references of their sample alone, at noise level 0, so their keys and values are computed once per image and not
    once per step. Generate with the mode that the weights were trained with."""


@configuration()
class Preset:
    """A whole model: joint encoder, aggregator, DiT, VAE and scheduler."""

    name: str
    """Name in bundles and errors."""
    description: str
    """One line for readers."""
    height: Side
    """Pixels of a generated image."""
    width: Side
    """Pixels of a generated image."""
    mllm: MllmConfig
    """Joint encoder."""
    vae: ComponentConfig
    """diffusers AutoencoderKL."""
    transformer: ComponentConfig
    """diffusers FluxTransformer2DModel."""
    scheduler: ComponentConfig
    """diffusers FlowMatchEulerDiscreteScheduler."""
    aggregator: AggregatorConfig
    """Layer aggregation and bridge."""
    references: ReferenceConfig
    """Identity tokens."""
    stages: str = "paper"
    """Denoising schedule (paper: multi-stage denoising) unless overridden. The paper's thresholds are noise levels at
    its resolution: with fewer tokens noise levels are shifted less, and few steps lie between them."""
    lora: LoraConfig | None = None
    """LoRA of a base run; null trains the DiT itself."""
    personal_learning_rate: Positive = 1e-4
    """Of a personal adapter, unless the request names one. The default is that of diffusers' DreamBooth script for Flux
    LoRAs; small models need more."""
    notice: str | None = None
    """What a user must know before using the weights; logged as a warning when a bundle is built."""

    def __post_init__(self) -> None:
        for name in ("vae", "transformer", "scheduler"):
            check_component(name, getattr(self, name).config)
        if self.aggregator.inner_width % self.aggregator.head_dim:
            raise ConfigError(
                f"aggregator.inner_width={self.aggregator.inner_width} is not a multiple of its head_dim",
                value=self.aggregator.head_dim,
                fix="change aggregator.inner_width or aggregator.head_dim",
            )
        if self.lora is not None and self.transformer.config:
            check_lora(self.lora, self.transformer.config)

    @property
    def licences(self) -> dict[str, str]:
        """Licences by component, for those that have one."""
        parts = {"mllm": self.mllm.licence, "vae": self.vae.licence, "transformer": self.transformer.licence}
        return {name: licence for name, licence in parts.items() if licence}

    def from_seed(self, *parts: SourcedPart) -> "Preset":
        """Return this preset without the sources of ``parts``, so that their weights are initialised from a seed.

        Raises ConfigError for a part without a configuration.
        """
        changed: dict[str, Any] = {}
        for name in parts:
            part = getattr(self, name)
            if not isinstance(part, AggregatorConfig) and not part.config:
                raise ConfigError(
                    f"the preset has no {name}.config, which a part from a seed needs",
                    value=self.name,
                    fix="keep its source",
                )
            changed[name] = dataclasses.replace(part, source=None)
        return dataclasses.replace(self, **changed)


def check_lora(lora: LoraConfig, transformer_config: Mapping[str, Any]) -> None:
    """Raise ConfigError if the LoRA's rank exceeds the attention width of a FluxTransformer2DModel configuration: it
    would be larger than the weights it adapts."""
    width = int(transformer_config["num_attention_heads"]) * int(transformer_config["attention_head_dim"])
    if lora.rank > width:
        raise ConfigError(f"lora.rank={lora.rank} exceeds the attention width {width}", fix="lower lora.rank")


def asset(name: str) -> Path:
    """Return the path of a file or folder that ships with the package. Raises ConfigError for ``../secrets``."""
    path = (ASSETS_DIR / name).resolve()
    if not path.is_relative_to(ASSETS_DIR.resolve()):
        raise ConfigError(
            "the preset names a file outside the assets that ship with lookalike",
            value=name,
            fix="use a name below platform/lookalike/assets, such as mini/vae",
        )
    return path


def list_presets() -> list[str]:
    """Return the sorted names of the shipped presets."""
    return sorted(path.stem for path in PRESETS_DIR.glob("*.yaml"))


def load_preset(name_or_path: str | Path) -> Preset:
    """Load a shipped preset by name, or any preset from its YAML file (a value that ends in .yaml or .yml).

    Raises ConfigError for an unknown name (the message lists the known ones), a missing file, or an invalid preset.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = PRESETS_DIR / f"{name_or_path}.yaml"
        if not path.is_file():
            known = ", ".join(list_presets())
            raise ConfigError(
                "unknown preset", value=str(name_or_path), fix=f"use one of {known}, or a path to a .yaml"
            )
    return preset_from_dict(read_config_file(path), origin=str(path))


@alone_in_process()
def preset_from_dict(values: Mapping[str, Any], origin: str = "preset") -> Preset:
    """Build a preset from plain values (YAML, or the copy in a ``bundle.json``).

    Raises ConfigError for an unknown, missing or badly typed key; ``origin`` names the file.
    """
    forbid_imports(Preset)
    check_groups(Preset, values, origin)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Preset, fail_untyped=True)
    try:
        return Preset(**parser.instantiate(parser.parse_object(dict(values), env=False)).as_dict())
    except Exception as error:  # jsonargparse raises other classes for values of unexpected types
        ours = error if isinstance(error, ConfigError) else error.__cause__  # of an optional part, parsed as a union
        if isinstance(ours, ConfigError):
            raise ConfigError(f"{origin}: {ours.what}", value=ours.value, fix=ours.fix) from None
        raise ConfigError(
            f"{origin} does not parse: {error}", fix="compare it with models/presets/mini.yaml"
        ) from error
