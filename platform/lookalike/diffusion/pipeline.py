"""``SubjectPipeline``: subject-driven generation as a diffusers pipeline."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from lookalike.diffusion.flow import FlowConfig
from lookalike.diffusion.inputs import check_generators, check_size, pair_references
from lookalike.diffusion.lora import SubjectLoraLoaderMixin
from lookalike.diffusion.sampling import Denoiser, Negative
from lookalike.diffusion.stages import PRESET, Plan, Stages, stages_of
from lookalike.errors import ConfigError
from lookalike.models.adapter_state import adapter_state, effective_loras, loras, without_loras
from lookalike.models.adapters import ADAPTER_NAME, load_lora, write_adapter
from lookalike.models.aggregate import LayerAggregator
from lookalike.models.batch import Batch, to_batch
from lookalike.models.bundle import ADAPTER, COMPONENTS, open_bundle, write_manifest
from lookalike.models.context import encode_context
from lookalike.models.dit import Context, ReferenceKeys, References, prepare_references
from lookalike.models.preprocess import Preprocessor
from lookalike.models.vae import decode, downsampling, encode, token_grid
from lookalike.models.weights import check_names

TOKENIZER_FILES = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "*.jinja",
    "preprocessor_config.json",
)


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
        kwargs.setdefault("use_safetensors", True)
        pipe: SubjectPipeline = super().from_pretrained(
            str(opened.components), preprocessor=Preprocessor.from_bundle(opened.components), **kwargs
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
        DiT's weights; one that is disabled or not active is left away. The pipeline stays as it is.

        Raises:
            ConfigError: several active LoRAs, or one of another name than ``default``: a bundle holds one.
        """
        folder, transformer = Path(save_directory), self.transformer
        drawn = effective_loras(transformer)
        if drawn not in ([], [ADAPTER_NAME]):
            raise ConfigError(
                f"a bundle holds one LoRA, named {ADAPTER_NAME}",
                value=drawn,
                fix="call fuse_lora first, which adds all that are active to the weights that are saved",
            )
        adapter = adapter_state(transformer, ADAPTER_NAME) if drawn else None
        if loras(transformer):
            plain = type(self)(**{**self.components, "transformer": without_loras(transformer)})
        else:
            plain = self
        shutil.rmtree(folder / ADAPTER, ignore_errors=True)  # of a bundle that was here before
        DiffusionPipeline.save_pretrained(plain, str(folder), **kwargs)
        if adapter is not None:
            write_adapter(folder / ADAPTER, adapter.settings, adapter.tensors)
        for pattern in TOKENIZER_FILES:
            for file in self.preprocessor.tokenizer_file.parent.glob(pattern):
                if file.resolve() != (folder / "mllm" / file.name).resolve():
                    shutil.copyfile(file, folder / "mllm" / file.name)
        write_manifest(folder, self.preprocessor.preset)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        references: Sequence[Any],
        *,
        num_inference_steps: int = 25,
        guidance_scale: float = 2.5,
        stages: Stages | str = PRESET,
        negative: Negative = "all",
        distilled_guidance: float = 1.0,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seeds: Sequence[int] | None = None,
        latents: Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Generate.

        Args:
            prompt: one text, or B; what is longer than the model reads is cut with a warning, as in diffusers.
            references: images of the subject (PIL or uint8 ``[H, W, 3]``): one list, shared by all prompts, or a list
                for each prompt. Their numbers may differ.
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
            output_type: ``pil``, ``np`` (uint8 ``[B, H, W, 3]``), ``pt`` (uint8 ``[B, 3, H, W]``) or ``latent``.
            callback_on_step_end: called as ``f(pipe, step, timestep, {"latents": …})``; may return other latents.
            return_dict: a :class:`SubjectPipelineOutput`, or a tuple of the images.

        Raises:
            InputError: no references or too many, an image too small or too large.
            ConfigError: a size that does not divide, stages out of order, no step, a guidance that the DiT has not.
        """
        preset = self.preprocessor.preset
        if distilled_guidance != 1 and not self.transformer.config.guidance_embeds:
            raise ConfigError("this DiT has no guidance embedding", value=distilled_guidance, fix="use guidance_scale")
        plan = self.plan(stages, num_inference_steps, height=height, width=width)
        height, width = height or preset.height, width or preset.width
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        rows = self.preprocessor(prompts, pair_references(references, len(prompts)), truncate_prompts=True)
        device = self._execution_device
        batch = to_batch(rows).to(device)
        grid = token_grid(self.vae, height, width)
        count = len(prompts) * num_images_per_prompt
        generators = [torch.Generator().manual_seed(seed) for seed in seeds] if seeds is not None else generator
        current = self._noise(latents, (count, grid[0] * grid[1], self.transformer.config.in_channels), generators)
        denoiser = Denoiser(
            self.transformer,
            grid,  # what follows is computed once, and only if a step of the plan sees it
            self._context(batch, num_images_per_prompt) if any(seen.mllm for seen in plan.conditions) else None,
            self._references(batch, num_images_per_prompt, grid, distilled_guidance)
            if any(seen.references for seen in plan.conditions)
            else None,
            preset.references.position,
            distilled_guidance,
        )
        with self.progress_bar(total=num_inference_steps) as progress:
            for step, (timestep, seen) in enumerate(zip(self.scheduler.timesteps, plan.conditions, strict=True)):
                sigma = self.scheduler.sigmas[step].to(current)
                predicted = denoiser.guided(current, sigma, seen, guidance_scale, negative)
                current = self.scheduler.step(predicted, timestep, current, return_dict=False)[0]
                if callback_on_step_end is not None:
                    current = callback_on_step_end(self, step, timestep, {"latents": current}).get("latents", current)
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
        preset = self.preprocessor.preset
        schedule = stages_of(stages, preset.stages)
        height, width = height or preset.height, width or preset.width
        check_size(height, width, 2 * downsampling(self.vae))
        if num_inference_steps < 1:
            raise ConfigError("no step to take", value=num_inference_steps, fix="use num_inference_steps of 1 or more")
        rows, columns = token_grid(self.vae, height, width)
        config = self.scheduler.config
        mu = FlowConfig.from_scheduler(config).mu(rows * columns) if config.use_dynamic_shifting else None
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)  # as diffusers' FluxPipeline does
        self.scheduler.set_timesteps(sigmas=sigmas, mu=mu, device=self._execution_device)
        return Plan.of(schedule, self.scheduler.sigmas[:-1].tolist())

    def _noise(self, given: Tensor | None, shape: tuple[int, int, int], generators: Any) -> Tensor:
        device, dtype = self._execution_device, self.transformer.dtype
        if given is not None:
            return given.to(device, dtype)
        check_generators(generators, shape[0])
        noise: Tensor = randn_tensor(shape, generator=generators, device=device, dtype=torch.float32)
        return noise.to(dtype)  # drawn in half precision, a seed would give other numbers

    def _context(self, batch: Batch, repeats: int) -> Context:
        once = encode_context(self.mllm, self.aggregator, batch)
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
        pixels = decode(self.vae, latents, grid).cpu()
        if output_type == "pt":
            return pixels
        arrays = pixels.permute(0, 2, 3, 1).numpy()
        return arrays if output_type == "np" else [Image.fromarray(array) for array in arrays]


def _repeat(rows: Tensor, times: int) -> Tensor:
    return rows.repeat_interleave(times, dim=0)
