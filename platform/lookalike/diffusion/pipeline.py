"""``SubjectPipeline``: subject-driven generation as a diffusers pipeline."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from lookalike.bundles.build import check_model_index
from lookalike.bundles.load import load_preprocessor
from lookalike.bundles.verification import open_bundle
from lookalike.diffusion.denoiser import Denoiser, context_of, references_of
from lookalike.diffusion.inputs import (
    check_count,
    check_latents,
    check_one_of,
    check_options,
    check_size,
    generators_of,
    negative_prompts_of,
    pair_references,
    prompts_of,
)
from lookalike.diffusion.lora import SubjectLoraLoaderMixin
from lookalike.diffusion.sampler import Negative, sample, set_noise_levels
from lookalike.diffusion.saving import save_bundle
from lookalike.diffusion.schedule import PRESET, SamplerPlan, Schedule, denoising_schedule
from lookalike.models.adapters import load_lora
from lookalike.models.aggregate import LayerAggregator
from lookalike.models.batch import to_batch
from lookalike.models.components import COMPONENTS
from lookalike.models.preprocess import Preprocessor
from lookalike.models.vae import decode, decode_floats, downsampling, token_grid
from lookalike.models.weights import check_names
from lookalike.process_wide import alone_in_process


class SubjectPipeline(DiffusionPipeline, SubjectLoraLoaderMixin):
    """Generates images of a subject from references of it and a prompt.

    >>> pipe = SubjectPipeline.from_pretrained("bundle")
    >>> pipe("a red mug on a beach", [Image.open("mug.jpg")], seeds=[0]).images[0]

    Args:
        mllm: transformers multimodal base model.
        aggregator: layer aggregation and bridge.
        transformer: the DiT.
        vae: diffusers AutoencoderKL.
        scheduler: flow-matching Euler scheduler.
        preprocessor: template, sizes and tokenizer; :meth:`from_pretrained` reads it from the bundle. A component like
            the others (``pipe.components``, ``from_pipe``), but without a folder of its own in a bundle.
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
        """Components for another pipeline: ``SubjectPipeline(**pipe.components)`` shares the weights."""
        return {name: getattr(self, name) for name in (*COMPONENTS, "preprocessor")}

    @classmethod
    @alone_in_process()
    def from_pretrained(cls, folder: str | Path, base: str | Path | None = None, **kwargs: Any) -> "SubjectPipeline":
        """Load a local bundle; a personal one (LoRA only) needs the folder of its base.

        Other arguments are those of ``DiffusionPipeline.from_pretrained`` (``torch_dtype``, ``device_map``, …). Raises
        InputError if a file is missing or damaged, ``base`` is not the adapter's, or a tensor is missing or unknown
        (not checked with a ``quantization_config``, which renames tensors).
        """
        components, adapter = open_bundle(Path(folder), None if base is None else Path(base))
        check_model_index(components)
        kwargs.setdefault("use_safetensors", True)
        preprocessor = load_preprocessor(components)
        pipe: SubjectPipeline = super().from_pretrained(str(components), preprocessor=preprocessor, **kwargs)
        parts = {name: getattr(pipe, name) for name in ("mllm", "aggregator", "transformer", "vae")}
        if "quantization_config" not in kwargs:
            check_names(parts, components)
        if adapter is not None:
            load_lora(pipe.transformer, adapter)
        for module in parts.values():
            module.requires_grad_(False).eval()
        return pipe

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write a full bundle that :meth:`from_pretrained` reads and that generates what this pipeline generates.

        An active LoRA is written beside the DiT with its weight of ``set_adapters``; a fused LoRA is part of the DiT's
        weights; a disabled or inactive LoRA is left out. The pipeline is not changed. Raises ConfigError for several
        active LoRAs, or one of another name than ``default``: a bundle holds one.
        """
        save_bundle(self, Path(save_directory), **kwargs)

    @property
    def guidance_scale(self) -> float:
        """Scale of the running call; a callback may set ``_guidance_scale`` for the steps that follow."""
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
        stages: Schedule | str = PRESET,
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
        """Generate images from prompts and references.

        Args:
            prompt: one text, or B; text longer than the model reads is cut with a warning, as in diffusers.
            references: images of the subject: one list, shared by all prompts, or a list for each prompt. Their numbers
                may differ. PIL images, arrays ``[H, W, C]`` or tensors ``[C, H, W]``, see
                :func:`~lookalike.diffusion.inputs.pair_references`. None generates from the text only: no step sees
                references, and unless ``stages`` are given every step sees the MLLM's tokens.
            negative_prompt: what the images must not show, one text or B: the MLLM reads it, without references, for
                the negative branch of true guidance, which otherwise has no MLLM tokens. Empty text counts as None.
            num_inference_steps: Euler steps.
            guidance_scale: true classifier-free guidance: negative + scale × (positive − negative). 1 turns it off.
            stages: which conditions are computed and seen at which noise level: a schedule, its name, ``"TAU1/TAU2"``
                or ``"TAU1/TAU2/BLEND"``, or a function from noise level to ``ConditionWeights``; by default the one of
                the bundle's preset.
            negative: the conditions that the negative branch of true guidance leaves out: ``all``, the ``mllm`` or the
                ``references`` alone. A step that sees none of them runs unguided.
            distilled_guidance: value of the guidance embedding of a guidance-distilled DiT, in both branches; 1.0 is
                the value in training.
            height: pixels; by default the preset's.
            width: pixels; by default the preset's.
            num_images_per_prompt: images of each prompt.
            generator: as in diffusers; a list has one for each image.
            seeds: one for each image, instead of generators: the same seed gives the same image in any batch.
            latents: initial noise, packed ``[B × images, T, C]``, instead of ``generator`` or ``seeds``.
            output_type: as in diffusers: ``pil``, ``np`` (float32 ``[B, H, W, 3]`` in [0, 1]), ``pt`` (float32
                ``[B, 3, H, W]`` in [0, 1]) or ``latent`` (packed).
            callback_on_step_end: called as ``f(pipe, step, timestep, {"latents": …})``; may return other latents.
                ``pipe._interrupt = True`` in it skips the remaining steps.
            callback_on_step_end_tensor_inputs: names of the tensors that it gets, of ``pipe._callback_tensor_inputs``.
            return_dict: diffusers' ``ImagePipelineOutput``, or a tuple of the images; those of one prompt are adjacent.

        Raises:
            InputError: no references in a list or too many, an image too small or too large.
            ConfigError: a size that does not divide, a denoising schedule out of order, no step, a guidance that the
                DiT does not have, or another argument that is out of its range.
        """
        repeats = num_images_per_prompt
        check_options(self.transformer, guidance_scale, distilled_guidance, repeats, output_type, negative)
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        for name in callback_on_step_end_tensor_inputs:
            check_one_of("tensor of callback_on_step_end_tensor_inputs", name, self._callback_tensor_inputs)
        prompts = prompts_of(prompt)
        negative_prompts = negative_prompts_of(negative_prompt, len(prompts))
        preset, photos = self.preprocessor.preset, pair_references(references, len(prompts))
        if references is None and stages == PRESET:
            stages = "mllm_only"
        plan = self._plan(self.scheduler, stages, num_inference_steps, height, width)
        if references is None:
            plan = plan.without_references()
        height, width = self._size(height, width)
        rows = self.preprocessor(prompts, photos, truncate_prompts=True)
        device, grid = self._execution_device, token_grid(self.vae, height, width)
        batch = to_batch(rows).to(device)
        count = len(prompts) * repeats
        generators = generators_of(generator, seeds, count)
        current = self._noise(latents, (count, grid[0] * grid[1], self.transformer.config.in_channels), generators)
        self._guidance_scale, self._num_timesteps, self._interrupt = guidance_scale, num_inference_steps, False
        context = photo_tokens = None  # each is computed once, and only if a step sees it
        if any(seen.mllm for seen in plan.weights):
            context = context_of(self.mllm, self.aggregator, batch, repeats)
        if any(seen.references for seen in plan.weights):
            photo_tokens = references_of(
                self.vae, self.transformer, batch, repeats, grid, preset.references, distilled_guidance, device
            )
        position = preset.references.position
        denoiser = Denoiser(self.transformer, grid, context, photo_tokens, position, distilled_guidance)
        negative_denoiser = None
        if context is not None and negative_prompts is not None:
            rows = self.preprocessor(negative_prompts, [[] for _ in prompts], truncate_prompts=True)
            keep = torch.tensor([bool(text.strip()) for text in negative_prompts], device=device)
            context = context_of(self.mllm, self.aggregator, to_batch(rows).to(device), repeats, keep)
            negative_denoiser = dataclasses.replace(denoiser, context=context)
        with self.progress_bar(total=num_inference_steps) as progress:

            def on_step_end(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
                if callback_on_step_end is not None:
                    inputs = {"latents": latents} if "latents" in callback_on_step_end_tensor_inputs else {}
                    changed = callback_on_step_end(self, step, timestep, inputs) or {}
                    latents = changed.get("latents", latents)
                progress.update()
                return latents

            current = sample(
                denoiser,
                current,
                self.scheduler,
                plan.weights,
                scale=lambda: self.guidance_scale,
                negative=negative,
                negative_prompt=negative_denoiser,
                on_step_end=on_step_end,
                interrupted=lambda: self.interrupt,
            )
        images = self._decode(current, grid, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def plan(
        self,
        stages: Schedule | str = PRESET,
        num_inference_steps: int = 25,
        *,
        height: int | None = None,
        width: int | None = None,
    ) -> SamplerPlan:
        """Return the noise level of each step of a call, and the conditions that the step sees, to print or plot.

        Raises ConfigError for a size that does not divide, a denoising schedule out of order, or no step.
        """
        return self._plan(copy.deepcopy(self.scheduler), stages, num_inference_steps, height, width)

    def _plan(
        self, scheduler: Any, stages: Schedule | str, steps: int, height: int | None, width: int | None
    ) -> SamplerPlan:
        """As :meth:`plan`; sets the noise levels of ``scheduler``."""
        schedule = denoising_schedule(stages, self.preprocessor.preset.stages)
        rows, columns = token_grid(self.vae, *self._size(height, width))
        check_count("num_inference_steps", steps)
        return SamplerPlan.of(schedule, set_noise_levels(scheduler, steps, rows * columns, self._execution_device))

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Return height and width in pixels, the preset's for None."""
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
        return noise.to(dtype)  # sampled in half precision, a seed would give other numbers

    def _decode(self, latents: Tensor, grid: tuple[int, int], output_type: str) -> Any:
        if output_type == "latent":
            return latents
        if output_type == "pil":
            pixels = decode(self.vae, latents, grid).cpu().permute(0, 2, 3, 1).numpy()
            return [Image.fromarray(array) for array in pixels]
        images = decode_floats(self.vae, latents, grid)
        return images if output_type == "pt" else images.cpu().permute(0, 2, 3, 1).numpy()
