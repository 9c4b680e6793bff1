"""``StackedPipeline``: images of several personal models of one base in one batch."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lookalike.bundles.manifest import BundleReference
from lookalike.bundles.transfer import opened_adapter
from lookalike.diffusion.loading import load_pipeline
from lookalike.diffusion.pipeline import SubjectPipeline
from lookalike.models.stacked_lora import Adapter, AdapterStack, read_stacked
from lookalike.models.subject import SubjectModel


@dataclass(frozen=True)
class PersonalImage:
    """One image of a batch."""

    bundle: BundleReference
    """Its model: a personal bundle, or the base itself."""
    prompt: str
    """What it should show."""
    references: Sequence[Any]
    """Images of the subject, as :class:`SubjectPipeline` takes them."""
    seed: int
    """Seed of its initial noise."""


class StackedPipeline:
    """Generates images of personal models, each by its own adapter, in one denoising batch.

    The base is in memory once. An image equals the one that its model generates alone, but for the rounding of float
    sums. Adapters stay in memory, the ones used last, up to a number of bytes. Threads may share it: one batch runs at
    a time.
    """

    def __init__(self, base: BundleReference, device: str, max_adapter_bytes: int) -> None:
        """Load the base onto ``device``.

        ``max_adapter_bytes`` bounds the adapters that stay in memory; those of the running batch stay in any case.
        Raises InputError if the bundle is damaged or was replaced.
        """
        pipe = load_pipeline(base, device)
        pipe.unload_lora_weights()  # the base's own is an adapter like others: personal models do not have it
        model = SubjectModel(pipe.mllm, pipe.aggregator, pipe.transformer, pipe.preprocessor.preset.references)
        self.base = base
        """The bundle that :attr:`BundleReference.whole` gives for each model that this pipeline has."""
        self.pipe: SubjectPipeline = pipe
        """The base; inside :meth:`__call__` with the adapters."""
        self._stack = AdapterStack(model.eval())
        self._adapters: OrderedDict[str, Adapter | None] = OrderedDict()
        self._max_bytes = max_adapter_bytes
        self._lock = threading.RLock()

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the adapters that are in memory."""
        return sum(adapter.size for adapter in self._adapters.values() if adapter is not None)

    def load(self, bundle: BundleReference) -> Adapter | None:
        """Return the adapter of a personal bundle, from memory if it is there; None if the bundle has none.

        Raises InputError if the bundle is damaged, was replaced, or has another base, or if its LoRA cannot be stacked.
        """
        assert bundle.whole.sha256 == self.base.sha256, "a model of another base"
        with self._lock:
            if bundle.sha256 not in self._adapters:
                with opened_adapter(bundle) as folder:
                    adapter = None if folder is None else read_stacked(self._stack.model, folder)
                self._adapters[bundle.sha256] = adapter
            self._adapters.move_to_end(bundle.sha256)
            while self.adapter_bytes > self._max_bytes and len(self._adapters) > 1:
                self._adapters.popitem(last=False)
            return self._adapters[bundle.sha256]

    @torch.no_grad()
    def __call__(self, images: Sequence[PersonalImage], **settings: Any) -> list[Any]:
        """Generate one image for each of ``images``, in their order.

        ``settings`` are those of :meth:`SubjectPipeline.__call__` that all images share (steps, guidance, stages, size,
        …); it raises as that does, and as :meth:`load`.
        """
        with self._lock:
            adapters = {image.bundle.sha256: self.load(image.bundle) for image in images}
            places = {sha256: place for place, sha256 in enumerate(adapters)}
            order = sorted(range(len(images)), key=lambda number: places[images[number].bundle.sha256])
            rows = [images[number] for number in order]  # those of one adapter side by side
            counts = {sha256: sum(image.bundle.sha256 == sha256 for image in rows) for sha256 in adapters}
            with self._stack.route([(adapters[sha256], count) for sha256, count in counts.items()]):
                generated = self.pipe(
                    [row.prompt for row in rows],
                    [list(row.references) for row in rows],
                    seeds=[row.seed for row in rows],
                    **settings,
                ).images
        results: list[Any] = [None] * len(images)
        for number, image in zip(order, generated, strict=True):
            results[number] = image
        return results
