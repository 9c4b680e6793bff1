"""Count the work of a micro batch: tokens, and FLOPs if the device's peak is known."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from lookalike.models.costs import Sample, aggregator_flops, denoising_flops, meta_model, mllm_flops
from lookalike.models.presets import LoraConfig, Preset
from lookalike.models.subject import Part, SubjectModel
from lookalike.process_wide import alone_in_process
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.micro_batch import SampleColumns
from lookalike.training.workers import Precision

_PEAK_TFLOPS: dict[str, dict[Precision, float]] = {
    "A100": {"float32": 19.5, "bfloat16": 312},
    "H100 PCIe": {"float32": 51, "bfloat16": 756},
    "H100": {"float32": 67, "bfloat16": 989},
    "H200": {"float32": 67, "bfloat16": 989},
    "L40S": {"float32": 91.6, "bfloat16": 362},
}
"""Dense peaks by a part of the device's name, from NVIDIA's data sheets; float32 without TF32, as in PyTorch."""


def peak_tflops(device_name: str, precision: Precision) -> float | None:
    """Return the dense peak in TFLOP/s of a device by its CUDA name; None for an unknown device."""
    return next((peaks[precision] for part, peaks in _PEAK_TFLOPS.items() if part in device_name), None)


def step_flops(model: SubjectModel, sample: Sample, *, references: bool) -> int:
    """Return the model's FLOPs for one sample of a training step: forward and backward, without the recomputation of
    activation checkpointing and without the VAE."""
    learns = any(parameter.requires_grad for parameter in model.aggregator.parameters())
    encoder = any(parameter.requires_grad for parameter in model.mllm.parameters())
    both = mllm_flops(model, sample, backward=encoder) + aggregator_flops(model, sample, backward=learns)
    return both + denoising_flops(model, sample, mllm=True, references=references, backward=True)


@dataclass(frozen=True)
class Workload:
    """Counts the tokens of a micro batch, and its FLOPs with a copy of the preset's model on the meta device."""

    preset: Preset
    adapter: LoraConfig | None
    """The LoRA that this run adds."""
    learns: tuple[Part, ...]
    """Parts that this run trains."""
    peak_tflops: float | None
    """Peak of one rank's device; None if unknown, and FLOPs are not counted."""
    _polynomials: dict[tuple[int, bool], Any] = field(default_factory=dict)

    def __call__(self, columns: SampleColumns, phase: PhaseConfig) -> tuple[int, float]:
        """Return the tokens that the DiT computes for the real samples of ``columns``, and the FLOPs of all rows."""
        latents = phase.conditions == "mllm+references"
        real, present = columns["weight"] > 0, columns["reference_mask"].astype(bool)
        sample = Sample.of(self.preset)
        tokens = sample.image * int(real.sum()) + int(columns["attention_mask"][real].sum())
        tokens += latents * sample.reference * int(present[real].sum())
        if self.peak_tflops is None:
            return tokens, 0.0
        slots = max(1, int(present.sum(axis=1).max(initial=0)))
        text = columns["attention_mask"].sum(axis=1) - present.sum(axis=1) * sample.tokens_per_image
        return tokens, len(real) * self._flops(slots, latents, int(text.max()))

    def _flops(self, references: int, latents: bool, text_tokens: int) -> float:
        """Interpolate: attention is quadratic in the length, the rest linear, so three lengths suffice."""
        if (references, latents) not in self._polynomials:
            lengths = (8, 16, 24)
            samples = [Sample.of(self.preset, references, text_tokens=length) for length in lengths]
            flops = [step_flops(self._model, sample, references=latents) for sample in samples]
            self._polynomials[references, latents] = np.polynomial.Polynomial.fit(lengths, flops, 2)
        return float(self._polynomials[references, latents](text_tokens))

    @cached_property
    def _model(self) -> SubjectModel:
        model = meta_model(self.preset)
        if self.adapter is not None and self.adapter != self.preset.lora:
            with alone_in_process(), torch.device("meta"):
                model.add_lora(self.adapter)
        model.set_trainable(self.learns)
        return model
