"""``SubjectPipeline``: subject-driven generation as a diffusers pipeline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from lookalike.bundles.build import check_model_index
from lookalike.bundles.load import load_preprocessor
from lookalike.bundles.verification import open_bundle
from lookalike.diffusion.flow import FlowConfig
from lookalike.diffusion.inputs import (
    OUTPUT_TYPES,
    check_count,
    check_latents,
    check_number,
    check_one_of,
    check_size,
    generators_of,
    negative_prompts_of,
    pair_references,
    prompts_of,
)
from lookalike.diffusion.lora import SubjectLoraLoaderMixin
from lookalike.diffusion.sampling import Denoiser, Negative
from lookalike.diffusion.saving import save_bundle
from lookalike.diffusion.stages import PRESET, Plan, Stages, stages_of
from lookalike.errors import ConfigError
from lookalike.models.adapters import load_lora
from lookalike.models.aggregate import LayerAggregator
from lookalike.models.batch import Batch, to_batch
from lookalike.models.components import COMPONENTS
from lookalike.models.context import encode_context
from lookalike.models.dit import Context, ReferenceKeys, References, prepare_references
from lookalike.models.preprocess import Preprocessor
from lookalike.models.vae import decode, decode_floats, downsampling, encode, token_grid
from lookalike.models.weights import check_names


@dataclass
class SubjectPipelineOutput(BaseOutput):
    """What the pipeline returns."""

    images: Any
    """PIL images, or an array or tensor as ``output_type`` says; those of one prompt stand together."""


class SubjectPipeline(DiffusionPipeline, SubjectLoraLoaderMixin):
    """Images of a subject, given references of it and a prompt.

    >>> pipe = SubjectPipeline.from_pretrained("bundle")
    >>> pipe("a red mug on a beach", [Image.open("mug.jpg")], seeds=[0]).images[0]

    Args:
        mllm: transformers multimodal base model.
        aggregator: layer aggregation and bridge.
        transformer: the DiT.
        vae: diffusers AutoencoderKL.
        scheduler: flow-matching Euler scheduler.
        preprocessor: template, sizes and tokenizer; :meth:`from_pretrained` reads it from the bundle. A component like
            the others (``pipe.components``, ``from_pipe``), but no folder of a bundle is its own.
    """

    model_cpu_offload_seq = "mllm->aggregator->transformer->vae"
    _callback_tensor_inputs = ("latents",)
    _guidance_scale = 1.0
    _num_timesteps = 0
    _interrupt = False

    def __init__(
        self,
        mllm: PreTrainedModel,
        aggregator: LayerAggregator,
        transformer: FluxTransformer2DModel,
        vae: AutoencoderKL,
        scheduler: FlowMatchEulerDiscreteScheduler,
        preprocessor: Preprocessor,
    ) -> None:
        super().__init__()
        self.register_modules(mllm=mllm, aggregator=aggregator, transformer=transformer, vae=vae, scheduler=scheduler)
        self.preprocessor = preprocessor

    @property
    def components(self) -> dict[str, Any]:
        """What another pipeline is made of: ``SubjectPipeline(**pipe.components)`` shares the weights."""
        return {name: getattr(self, name) for name in (*COMPONENTS, "preprocessor")}

    @classmethod
    def from_pretrained(cls, folder: str | Path, base: str | Path | None = None, **kwargs: Any) -> "SubjectPipeline":
        """Load a bundle from a local folder; a personal one needs the folder of its base.

        Other arguments are those of ``DiffusionPipeline.from_pretrained`` (``torch_dtype``, ``device_map``, …).

        Raises:
            InputError: no bundle, an incomplete one, another base than the adapter was trained on, or a tensor that is
                missing or unknown (not looked for with a ``quantization_config``, which renames them).
        """
        opened = open_bundle(Path(folder), None if base is None else Path(base))
        check_model_index(opened.components)
        kwargs.setdefault("use_safetensors", True)
        pipe: SubjectPipeline = super().from_pretrained(
            str(opened.components), preprocessor=load_preprocessor(opened.components), **kwargs
        )
        parts = {name: getattr(pipe, name) for name in ("mllm", "aggregator", "transformer", "vae")}
        if "quantization_config" not in kwargs:
            check_names(parts, opened.components)
        if opened.adapter is not None:
            load_lora(pipe.transformer, opened.adapter)
        for module in parts.values():
            module.requires_grad_(False).eval()
        return pipe

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write a full bundle that :meth:`from_pretrained` reads and that generates what this pipeline generates.

        A LoRA that is active is written beside the DiT with its weight of ``set_adapters``; one that is fused is in the
        DiT's weights; one that is disabled or not active is left out. The pipeline stays as it is.

        Raises:
            ConfigError: several active LoRAs, or one of another name than ``default``: a bundle holds one.
        """
        save_bundle(self, Path(save_directory), **kwargs)

    @property
    def guidance_scale(self) -> float:
        """Of the running call; a callback may set ``_guidance_scale`` for the steps that follow."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps of the running call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the running call skips its remaining steps: a callback sets ``_interrupt``."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        references: Any = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 2.5,
        stages: Stages | str = PRESET,
        negative: Negative = "all",
        distilled_guidance: float = 1.0,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seeds: int | Sequence[int] | None = None,
        latents: Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> Any:
        """Generate.

        Args:
            prompt: one text, or B; what is longer than the model reads is cut with a warning, as in diffusers.
            references: images of the subject: one list, shared by all prompts, or a list for each prompt. Their numbers
                may differ. PIL images, arrays ``[H, W, C]`` or tensors ``[C, H, W]``, see
                :func:`~lookalike.diffusion.inputs.pair_references`. None generates from the text only: no step sees
                references, and unless ``stages`` are given every step sees the MLLM's tokens.
            negative_prompt: what the images must not show, one text or B: the MLLM reads it, without references, for
                the negative branch of true guidance, which otherwise has no MLLM tokens. Empty is none.
            num_inference_steps: Euler steps.
            guidance_scale: true classifier-free guidance: negative + scale × (positive − negative). 1 turns it off.
            stages: which conditions are computed and seen at which noise level: a schedule, its name, ``"TAU1/TAU2"``
                or ``"TAU1/TAU2/BLEND"``, or a function that makes ``Conditions`` of a noise level; by default what the
                bundle's preset says.
            negative: what the negative branch of true guidance leaves away of what the step sees: ``all``, the ``mllm``
                or the ``references`` alone. It is not computed in it; a step that loses nothing runs unguided.
            distilled_guidance: value of the guidance embedding of a guidance-distilled DiT, in both branches; 1.0 is
                what it was trained at.
            height: pixels; by default the preset's.
            width: pixels; by default the preset's.
            num_images_per_prompt: images of each prompt.
            generator: as in diffusers; a list has one for each image.
            seeds: one for each image, instead of generators: the same seed gives the same image in any batch.
            latents: initial noise, packed ``[B × images, T, C]``, instead of either.
            output_type: as in diffusers: ``pil``, ``np`` (float32 ``[B, H, W, 3]`` in [0, 1]), ``pt`` (float32
                ``[B, 3, H, W]`` in [0, 1]) or ``latent`` (packed).
            callback_on_step_end: called as ``f(pipe, step, timestep, {"latents": …})``; may return other latents. It
                ends the call early with ``pipe._interrupt = True``.
            callback_on_step_end_tensor_inputs: what it gets, of ``pipe._callback_tensor_inputs``.
            return_dict: a :class:`SubjectPipelineOutput`, or a tuple of the images.

        Raises:
            InputError: no references in a list or too many, an image too small or too large.
            ConfigError: a size that does not divide, stages out of order, no step, a guidance that the DiT
                does not have, or another argument that is out of its range.
        """
        preset = self.preprocessor.preset
        check_number("guidance_scale", guidance_scale)
        check_number("distilled_guidance", distilled_guidance)
        check_count("num_images_per_prompt", num_images_per_prompt)
        check_one_of("output_type", output_type, OUTPUT_TYPES)
        check_one_of("negative", negative, get_args(Negative))
        if distilled_guidance != 1 and not self.transformer.config.guidance_embeds:
            raise ConfigError("this DiT has no guidance embedding", value=distilled_guidance, fix="use guidance_scale")
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        for name in callback_on_step_end_tensor_inputs:
            check_one_of("tensor of callback_on_step_end_tensor_inputs", name, self._callback_tensor_inputs)
        prompts = prompts_of(prompt)
        negative_prompts = negative_prompts_of(negative_prompt, len(prompts))
        photos = pair_references(references, len(prompts))
        if references is None and stages == PRESET:
            stages = "mllm_only"
        plan = self.plan(stages, num_inference_steps, height=height, width=width)
        if references is None:
            plan = plan.without_references()
        height, width = self._size(height, width)
        rows = self.preprocessor(prompts, photos, truncate_prompts=True)
        device, repeats = self._execution_device, num_images_per_prompt
        batch = to_batch(rows).to(device)
        grid = token_grid(self.vae, height, width)
        count = len(prompts) * repeats
        generators = generators_of(generator, seeds, count)
        current = self._noise(latents, (count, grid[0] * grid[1], self.transformer.config.in_channels), generators)
        self._guidance_scale, self._num_timesteps, self._interrupt = guidance_scale, num_inference_steps, False
        sees_mllm = any(seen.mllm for seen in plan.conditions)
        negative_context = None
        if sees_mllm and negative_prompts is not None:
            other = to_batch(self.preprocessor(negative_prompts, [[] for _ in prompts], truncate_prompts=True)).to(
                device
            )
            keep = torch.tensor([bool(text.strip()) for text in negative_prompts], device=device)
            negative_context = self._context(other, repeats, keep)
        denoiser = Denoiser(
            self.transformer,
            grid,  # what follows is computed once, and only if a step of the plan sees it
            self._context(batch, repeats) if sees_mllm else None,
            self._references(batch, repeats, grid, distilled_guidance)
            if any(seen.references for seen in plan.conditions)
            else None,
            preset.references.position,
            distilled_guidance,
            negative_context,
        )
        with self.progress_bar(total=num_inference_steps) as progress:
            for step, (timestep, seen) in enumerate(zip(self.scheduler.timesteps, plan.conditions, strict=True)):
                if self.interrupt:
                    continue
                sigma = self.scheduler.sigmas[step].to(current)
                predicted = denoiser.guided(current, sigma, seen, self.guidance_scale, negative)
                current = self.scheduler.step(predicted, timestep, current, return_dict=False)[0]
                if callback_on_step_end is not None:
                    inputs = {"latents": current} if "latents" in callback_on_step_end_tensor_inputs else {}
                    changed = callback_on_step_end(self, step, timestep, inputs) or {}
                    current = changed.get("latents", current)
                progress.update()
        images = self._decode(current, grid, output_type)
        self.maybe_free_model_hooks()
        return SubjectPipelineOutput(images=images) if return_dict else (images,)

    def plan(
        self,
        stages: Stages | str = PRESET,
        num_inference_steps: int = 25,
        *,
        height: int | None = None,
        width: int | None = None,
    ) -> Plan:
        """What each step of such a call sees: print it, or plot it. Sets the scheduler's noise levels.

        Raises:
            ConfigError: a size that does not divide, stages out of order, no step.
        """
        schedule = stages_of(stages, self.preprocessor.preset.stages)
        rows, columns = token_grid(self.vae, *self._size(height, width))
        check_count("num_inference_steps", num_inference_steps)
        config = self.scheduler.config
        mu = FlowConfig.from_scheduler(config).mu(rows * columns) if config.use_dynamic_shifting else None
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)  # as diffusers' FluxPipeline does
        self.scheduler.set_timesteps(sigmas=sigmas, mu=mu, device=self._execution_device)
        return Plan.of(schedule, self.scheduler.sigmas[:-1].tolist())

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width in pixels, the preset's where None."""
        preset = self.preprocessor.preset
        size = (preset.height if height is None else height, preset.width if width is None else width)
        check_size(*size, 2 * downsampling(self.vae))
        return size

    def _noise(self, given: Tensor | None, shape: tuple[int, int, int], generators: Any) -> Tensor:
        device, dtype = self._execution_device, self.transformer.dtype
        if given is not None:
            check_latents(given, shape)
            return given.to(device, dtype)
        noise: Tensor = randn_tensor(shape, generator=generators, device=device, dtype=torch.float32)
        return noise.to(dtype)  # drawn in half precision, a seed would give other numbers

    def _context(self, batch: Batch, repeats: int, keep: Tensor | None = None) -> Context:
        once = encode_context(self.mllm, self.aggregator, batch, keep=keep)
        return Context(_repeat(once.tokens, repeats), _repeat(once.mask, repeats))

    def _references(
        self, batch: Batch, repeats: int, grid: tuple[int, int], guidance: float
    ) -> References | ReferenceKeys:
        images, mask = batch.references, batch.reference_mask
        latents = encode(self.vae, images.flatten(0, 1), self._execution_device).unflatten(0, images.shape[:2])
        own_grid = token_grid(self.vae, *images.shape[-2:])
        references = References(_repeat(latents, repeats), _repeat(mask, repeats), own_grid)
        return prepare_references(self.transformer, references, grid, self.preprocessor.preset.references, guidance)

    def _decode(self, latents: Tensor, grid: tuple[int, int], output_type: str) -> Any:
        if output_type == "latent":
            return latents
        if output_type == "pil":
            pixels = decode(self.vae, latents, grid).cpu().permute(0, 2, 3, 1).numpy()
            return [Image.fromarray(array) for array in pixels]
        images = decode_floats(self.vae, latents, grid)
        return images if output_type == "pt" else images.cpu().permute(0, 2, 3, 1).numpy()


def _repeat(rows: Tensor, times: int) -> Tensor:
    return rows.repeat_interleave(times, dim=0)
