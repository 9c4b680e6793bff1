"""The report of ``jobs/train.py plan``: what a configuration needs, printed before anything starts."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lookalike.errors import ConfigError
from lookalike.models.presets import Preset, load_preset
from lookalike.training.config import TrainConfig
from lookalike.values import configuration

if TYPE_CHECKING:  # it imports the model's classes, for which `jobs/train.py run` need not wait
    from lookalike.training.budget import Cluster, PhaseCost

STEPS = 25  # of the sampler


@configuration()
class PlanConfig(TrainConfig):
    """Print what a training run would need on the named GPUs. Nothing is read, downloaded or started.

    The report determines ``workers`` and ``micro_batch_size``.
    """

    dataset: str = ""
    """Not read."""
    run: str = ""
    """Not written."""
    gpus: str = "8x80"
    """Number of GPUs x memory of each in GB."""
    peak_tflops: float | None = None
    """Dense peak of one GPU in that precision; by default an H100's: 989 in bfloat16, 67 in float32."""
    utilisation: float = 0.35
    """Assumed share of the peak that the model's FLOPs reach."""
    references: int = 1
    """Reference images of each sample."""
    text_tokens: int = 64
    """Tokens of the prompt with its template."""

    @property
    def cluster(self) -> "Cluster":
        """The GPUs. Raises ConfigError if ``gpus`` does not have the form ``NUMBERxMEMORY``."""
        from lookalike.training.budget import Cluster
        from lookalike.training.workload import peak_tflops

        number, _, memory = self.gpus.partition("x")
        try:
            gpus, memory_gb = int(number), float(memory)
        except ValueError as error:
            raise ConfigError(
                "gpus does not have the form NUMBERxMEMORY", value=self.gpus, fix="try 8x80, for 8 GPUs of 80 GB"
            ) from error
        peak = self.peak_tflops or peak_tflops("H100", self.precision)
        assert peak is not None
        return Cluster(gpus, memory_gb, peak_tflops=peak, utilisation=self.utilisation)


def plan(config: PlanConfig) -> str:
    """Return the report as Markdown.

    Raises ConfigError for a preset without shapes, or a batch size that is not a multiple of the GPUs.
    """
    preset, cluster = load_preset(config.preset), config.cluster
    if config.batch_size % cluster.gpus:
        raise ConfigError(
            f"batch_size={config.batch_size} is not a multiple of {cluster.gpus} GPUs",
            fix=f"use a multiple of {cluster.gpus}",
        )
    return "\n".join([*model_table(preset), "", *_training(config, preset, cluster)])


def model_table(preset: Preset, sizes: Sequence[int] = (512, 1024)) -> list[str]:
    """Return a table of parameters, and of the DiT's tokens and the FLOPs of one image by size and references."""
    from lookalike.models.costs import (
        Sample,
        aggregator_flops,
        count_parameters,
        denoising_flops,
        meta_model,
        meta_vae,
        mllm_flops,
        vae_flops,
    )

    model, vae = meta_model(preset), meta_vae(preset)
    counts = count_parameters(model)
    counts["vae"] = sum(parameter.numel() for parameter in vae.parameters())
    lines = [f"{preset.name}, parameters in millions:", ""]
    lines += _table([list(counts), [f"{count / 1e6:,.1f}" for count in counts.values()]])
    lines += ["", f"Tokens of the DiT in a step, and TFLOPs of one image ({STEPS} steps with guidance):", ""]
    rows = [["size", "references", "MLLM", "MLLM + VAE", "VAE", "steps of each", "encoding", "denoising", "image"]]
    samples = [Sample.of(preset, references) for references in range(1, preset.references.max_references + 1)]
    context = [mllm_flops(model, sample) + aggregator_flops(model, sample) for sample in samples]  # of any image
    for side in sizes if preset.height >= min(sizes) else [preset.height]:
        encode, decode = vae_flops(vae, side, side)
        image = Sample.of(preset, height=side, width=side)
        steps = steps_by_conditions(preset, image.image)
        plain = denoising_flops(model, image, mllm=False, references=False)  # the negative branch
        for references, context_flops in enumerate(context, start=1):
            sample = Sample.of(preset, references, height=side, width=side)
            seen = {
                seen_by: denoising_flops(model, sample, mllm=seen_by[0], references=seen_by[1])
                for seen_by in ((True, False), (True, True), (False, True))
            }
            encoding = context_flops + encode * references
            denoising = sum(count * (seen[seen_by] + plain) for seen_by, count in steps.items())
            rows.append(
                [
                    f"{side}²",
                    str(references),
                    *(f"{sample.tokens(mllm=mllm, references=vae_tokens):,}" for mllm, vae_tokens in seen),
                    " + ".join(str(steps[seen_by]) for seen_by in seen),
                    *(f"{flops / 1e12:,.1f}" for flops in (encoding, denoising, encoding + denoising + decode)),
                ]
            )
    return lines + _table(rows)


def steps_by_conditions(preset: Preset, tokens: int) -> Counter[tuple[bool, bool]]:
    """Count the sampler steps that see (MLLM, references) by the preset's schedule, for an image of ``tokens``."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from lookalike.diffusion.sampler import set_noise_levels
    from lookalike.diffusion.schedule import SamplerPlan, denoising_schedule

    scheduler = FlowMatchEulerDiscreteScheduler(**preset.scheduler.config)
    plan = SamplerPlan.of(denoising_schedule(preset.stages), set_noise_levels(scheduler, STEPS, tokens))
    return Counter((seen.mllm > 0, seen.references > 0) for seen in plan.weights)


def _training(config: PlanConfig, preset: Preset, cluster: "Cluster") -> list[str]:
    from lookalike.models.costs import Sample
    from lookalike.training.budget import GB, phase_costs, plan_memory

    sample = Sample.of(preset, config.references, text_tokens=config.text_tokens)
    share = config.batch_size // cluster.gpus
    memory = plan_memory(config, preset, sample, cluster)
    fits = max(
        (micro for micro in range(1, share + 1) if share % micro == 0 and micro <= memory.micro_batch), default=0
    )
    checkpointing = "with" if config.activation_checkpointing else "without"
    lines = [
        f"Training on {config.gpus}, {config.precision}, ZeRO-3, {checkpointing} activation checkpointing, "
        f"{config.references} reference(s), {preset.height}x{preset.width}; GB of each GPU:",
        "",
    ]
    rows = [["what", "GB"], *([name, f"{size / GB:.2f}"] for name, size in memory.rows.items())]
    activations = memory.activation * (fits or 1)
    rows.append([f"activations of a micro batch of {fits or 1}", f"{activations / GB:.2f}"])
    total = sum(memory.rows.values()) + activations
    lines += _table([*rows, ["all", f"{total / GB:.2f}"]])
    offload = "none needed"
    if memory.offload != "none":
        offload = f"zero.offload={memory.offload}, {memory.host / GB:.2f} GB of the host's memory for each GPU"
    lines += ["", f"Offload to the host: {offload}. Largest micro batch that fits: {memory.micro_batch}."]
    if not fits:
        return [*lines, "One sample does not fit; use more or larger GPUs, or activation_checkpointing."]
    lines += [
        f"The batch of {config.batch_size} is {cluster.gpus} GPUs x {share // fits} accumulated x {fits}.",
        "",
        f"At an assumed {cluster.utilisation:.0%} of {cluster.peak_tflops:g} TFLOP/s (projected, not measured):",
        "",
    ]
    costs, batch = phase_costs(config, preset, sample, cluster), config.batch_size
    table = [["phase", "steps", "tokens of a step", "TFLOPs of a sample", "PFLOPs of a step", "days"]]
    table += [
        [
            phase.name,
            f"{phase.steps:,}",
            f"{cost.tokens * batch:,}",
            f"{cost.flops / 1e12:,.3f}",
            f"{cost.flops * batch / 1e15:,.3f}",
            f"{cost.days:.2f}",
        ]
        for phase, cost in zip(config.stages, costs, strict=True)
    ]
    table.append(["all", f"{config.total_steps:,}", "", "", "", f"{sum(cost.days for cost in costs):.2f}"])
    return [*lines, *_table(table), "", *_loaders(config, preset, cluster, costs)]


def _loaders(config: PlanConfig, preset: Preset, cluster: "Cluster", costs: Sequence["PhaseCost"]) -> list[str]:
    """Return how many CPU cores keep a GPU supplied: a sample's measured seconds x the GPU's projected samples/s."""
    from pipelines.train.loader_cost import measure

    cost = measure(preset, config.references)
    lines = [
        f"Loaders: a sample takes {1e3 * cost.seconds:.0f} ms of a CPU core (measured on this machine, with generated "
        f"photos) and has {cost.megabytes:.2f} MB. For each GPU, at its samples per second (projected):",
        "",
    ]
    table = [["CPU cores", "MB/s", "samples/s", "phase"]]
    for phase, each in zip(config.stages, costs, strict=True):
        rate = cluster.peak_tflops * 1e12 * cluster.utilisation / each.flops
        numbers = f"{rate * cost.seconds:.2f}", f"{rate * cost.megabytes:.1f}", f"{rate:.2f}"
        table.append([*numbers, phase.name])
    return lines + _table(table)


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return rows as a Markdown table; the first row is the heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * (lines[0].count("|") - 1), *lines[1:]]
