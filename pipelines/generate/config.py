"""The configuration of `jobs/generate.py`."""

from dataclasses import field
from typing import Annotated

from annotated_types import Le

from lookalike.config import IDENTITY_IF_SET, NOT_IDENTITY
from lookalike.diffusion.schedule import denoising_schedule
from lookalike.errors import ConfigError
from lookalike.models.limits import MAX_SIDE
from lookalike.values import Count, Mib, Seed, configuration
from pipelines.actors import ActorConfig


@configuration()
class GenerateConfig:
    """Generate images of a subject. The same command again generates missing ones, or returns the finished result."""

    out: str = field(metadata=NOT_IDENTITY)
    """URI that receives images/, contact_sheet.png and generations.json (last); with --requests, a folder with these
    for each request, and results.jsonl."""
    model: str = field(default="", metadata=NOT_IDENTITY)
    """``models:/NAME@champion``, ``models:/NAME/3``, or the URI of a bundle."""
    requests: str | None = field(default=None, metadata=NOT_IDENTITY)
    """URI of a file of JSON lines, each a generation with an id and settings of its own: model, prompt, reference,
    num_images, seed, height, width, steps, guidance_scale, stages, bundle, base. Others are those of the command."""
    prompt: list[str] = field(default_factory=list)
    """What the image should show; may be repeated."""
    prompts_file: str | None = field(default=None, metadata=NOT_IDENTITY)
    """URI of a text file with one prompt a line, after those of --prompt; blank lines do not count."""
    reference: list[str] = field(default_factory=list, metadata=NOT_IDENTITY)
    """Photo of the subject, or a folder of them, of which the model takes as many as it reads; may be repeated."""
    max_prompts_mib: Mib = field(default=16, metadata=NOT_IDENTITY)
    """Largest size of the file of ``prompts_file``, in MiB."""
    max_reference_mib: Mib = field(default=256, metadata=NOT_IDENTITY)
    """Largest size of a reference's file, in MiB; it is read into memory whole."""
    max_requests_mib: Mib = field(default=4096, metadata=NOT_IDENTITY)
    """Largest size of the file of ``requests``, in MiB; it is copied to this machine and read line by line."""
    num_images: Annotated[Count, Le(100_000)] = 1
    """Images of each prompt."""
    seed: Seed = 0
    """Seed of the first image of each prompt; the next ones count up."""
    height: Annotated[Count, Le(MAX_SIDE)] | None = field(default=None, metadata=IDENTITY_IF_SET)
    """Pixels of an image, a multiple of a token's side (8 for mini, 16 for FLUX); by default the model's."""
    width: Annotated[Count, Le(MAX_SIDE)] | None = field(default=None, metadata=IDENTITY_IF_SET)
    """Pixels, as --height."""
    steps: Annotated[Count, Le(10_000)] = 25
    """Denoising steps."""
    guidance_scale: float = 2.5
    """Classifier-free guidance; 1 turns it off."""
    stages: str = "preset"
    """The denoising schedule, which conditions a step sees: preset (the model's), paper, mllm_only, both,
    reference_only, TAU1/TAU2 or TAU1/TAU2/BLEND: the noise levels below which the references' latents are added and the
    MLLM's tokens are removed, and the width of the transition. Lower levels follow the text more, identity less."""
    batch_size: Annotated[Count, Le(4_096)] = field(default=8, metadata=NOT_IDENTITY)
    """Images of a batch, with --requests of several models of one base."""
    adapters_mib: Mib = field(default=1024, metadata=NOT_IDENTITY)
    """With --requests, MiB of adapters that an actor keeps in memory, those used last; the running batch's stay."""
    bundle: str | None = field(default=None, metadata=NOT_IDENTITY)
    """URI of the model's bundle, if it was moved since it was registered."""
    base: str | None = field(default=None, metadata=NOT_IDENTITY)
    """URI of a personal model's base, if it was moved since the adapter was trained."""
    tracking: str | None = field(default=None, metadata=NOT_IDENTITY)
    """MLflow tracking URI that knows the model's name; by default MLFLOW_TRACKING_URI. A bundle's URI needs none."""
    actors: ActorConfig = field(default_factory=ActorConfig, metadata=NOT_IDENTITY)
    """The actors that generate."""

    def __post_init__(self) -> None:
        denoising_schedule(self.stages)  # raises for a name or an order that is not valid
        if self.requests is not None:
            return  # each request is checked with its own settings
        if not self.model:
            raise ConfigError("no model is given", fix="name one with --model")
        if not self.prompt and not self.prompts_file:
            raise ConfigError("there is no prompt", fix="name one with --prompt or --prompts-file")
        if not self.reference:
            raise ConfigError("there is no reference photo of the subject", fix="name one with --reference")
