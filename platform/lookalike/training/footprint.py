"""Estimate the memory of one training process before anything is allocated: ZeRO-3's states, and the peak of a pass.

The pass runs the real modules on fake tensors (PyTorch's ``FakeTensorMode``: the CPU's kernels, no storage) and counts
the bytes that are alive at once. PyTorch's ``MemTracker`` cannot: it hooks every parameter, also frozen ones.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from lookalike.models.costs import Sample, by_depth, context_of, denoise
from lookalike.models.subject import SubjectModel
from lookalike.training.optimizer import STATE_BYTES
from lookalike.training.workers import ZeroConfig

_FP32 = 4


def zero3_states(
    parameters: Iterable[nn.Parameter], ranks: int, dtype: torch.dtype, keep_whole: int, *, average: bool = False
) -> dict[str, int]:
    """Return the bytes that one of ``ranks`` ranks holds between two steps, by what they are for.

    Parameters with ``requires_grad`` are trained; those of up to ``keep_whole`` elements are also whole on every rank.
    """
    frozen = trainable = whole = 0
    for parameter in parameters:
        numel = parameter.numel()
        share = -(-numel // ranks)  # padded to equal parts
        frozen += share * (not parameter.requires_grad)
        trainable += share * parameter.requires_grad
        whole += numel * (numel <= keep_whole)
    return {
        "frozen parameters": frozen * dtype.itemsize,
        "trainable parameters": trainable * dtype.itemsize,
        "small parameters, whole": whole * dtype.itemsize,
        # DeepSpeed copies master weights even from a float32 share; the average is one more fp32 copy.
        "master weights, moments": trainable * (_FP32 * (1 + average) + STATE_BYTES),
        "gradients": trainable * _FP32,
    }


def communication_bytes(parameters: Iterable[nn.Parameter], dtype: torch.dtype, zero: ZeroConfig) -> int:
    """Return the bytes of the gradient bucket and of the layers gathered for a pass: DeepSpeed's bounds on both."""
    total = sum(parameter.numel() for parameter in parameters)
    return (zero.reduce_bucket + min(zero.max_live, total)) * dtype.itemsize


def activation_bytes(model: SubjectModel, sample: Sample, batch: int, *, references: bool) -> int:
    """Return the peak bytes of one forward and backward pass on ``batch`` samples, beside parameters and gradients.

    Hidden states of the MLLM, aggregator and DiT, with gradient checkpointing if it is enabled. Gradients are removed
    as they are computed: ZeRO-3 scatters them, and they are counted with the states. The frozen MLLM's own pass
    keeps less than the DiT's and ends before it. ``references``: whether the DiT sees reference tokens.

    ``model`` is built by :func:`~lookalike.models.costs.meta_model` and :func:`pretend`\\ ed, or a real one on the CPU.
    """
    hooks = [
        parameter.register_post_accumulate_grad_hook(_drop_gradient)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]

    def measure() -> int:
        with LiveBytes(model) as live, torch.enable_grad():
            predicted = denoise(model, sample, context_of(model, sample, batch), references, batch)
            predicted.float().square().mean().backward()
        return int(live.peak)

    try:
        with _mode_of(model):
            return by_depth(model.transformer, measure)
    finally:
        for hook in hooks:
            hook.remove()


def encoding_bytes(vae: Any, height: int, width: int) -> int:
    """Return the peak bytes of encoding one image of that many pixels, beside the VAE's parameters."""
    with _mode_of(vae), torch.no_grad(), LiveBytes(vae) as live:
        vae.encode(torch.empty(1, 3, height, width, dtype=vae.dtype))
    return int(live.peak)


def pretend(module: Any) -> Any:
    """Turn a module on the meta device into one of fake tensors on the CPU, in place: the CPU's kernels, no storage."""
    mode = FakeTensorMode()
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = FakeTensor(mode, buffer, torch.device("cpu"))
        for name, parameter in part.named_parameters(recurse=False):
            fake = FakeTensor(mode, parameter.detach(), torch.device("cpu"))
            part._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
    return module


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live storages that operations allocate; those of ``module`` do not count."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.live: int = 0
        self.peak: int = 0
        """Most bytes alive at once."""
        self._known = WeakIdKeyDictionary()
        for tensor in [*module.parameters(), *module.buffers()]:
            self._known[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and value.untyped_storage() not in self._known:
                storage = value.untyped_storage()
                self._known[storage] = True
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, storage.nbytes())
        return out

    def _free(self, size: int) -> None:
        self.live -= size


def _mode_of(module: nn.Module) -> Any:
    """Return the fake mode of a module that :func:`pretend` converted; a real module needs none."""
    first = next(module.parameters())
    return first.fake_mode if isinstance(first, FakeTensor) else torch.enable_grad()


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
