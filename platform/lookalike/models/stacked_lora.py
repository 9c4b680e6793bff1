"""Several LoRAs in one pass of the DiT: each row of a batch goes through its own.

The base's layers stay as they are; a hook behind each layer adds the update of a row's adapter. The weights are stacked
in the forward pass alone, so that each adapter keeps its own parameters, gradients and optimizer. For adapters with the
same number of rows the update is one batched matrix product. LoRAFusion (arXiv 2510.00206) trains language models in
this way, with kernels of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lookalike.errors import ConfigError, InputError
from lookalike.models.adapter_files import read_adapter
from lookalike.models.adapters import ADAPTER_NAME, initialise_lora, load_adapter, lora_layers
from lookalike.models.presets import LoraConfig
from lookalike.models.subject import Part, SubjectModel

_PART: Part = "transformer_lora"

# Legend: A adapters, B rows, N rows of one adapter times tokens, R rank, I and O features in and out of a layer.


@dataclass(frozen=True)
class Adapter:
    """A LoRA of the DiT that is trained, or generates images, beside others."""

    parameters: dict[str, nn.Parameter]
    """By their names in a :class:`SubjectModel` that has this LoRA alone, as :meth:`SubjectModel.set_trainable` returns
    them; checkpoints and exports use the same names."""
    scale: float
    """The update is scaled by it: alpha / rank."""

    @cached_property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.parameters.values())

    @cached_property
    def layers(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """Down ``[R, I]`` and up projection ``[O, R]`` by the layer's path in the model."""
        down = {_layer_of(name): value for name, value in self.parameters.items() if ".lora_A." in name}
        up = {_layer_of(name): value for name, value in self.parameters.items() if ".lora_B." in name}
        return {path: (down[path], up[path]) for path in down}


def new_adapter(model: SubjectModel, lora: LoraConfig, seed: int) -> Adapter:
    """Return a new LoRA without effect yet, with the initial weights that a run of its own with this seed begins with.

    The model is unchanged.

    Raises ConfigError for a LoRA with dropout, whose random numbers would depend on the other adapters; for a rank
    above the attention width; or if the model has a LoRA.
    """
    if lora.dropout:
        raise ConfigError(
            "the random numbers of a LoRA's dropout depend on the adapters beside it",
            value=f"dropout={lora.dropout}",
            fix="set adapter.dropout to 0, or train this subject alone",
        )
    transformer: Any = model.transformer
    if getattr(transformer, "peft_config", None):
        raise ConfigError("the model has a LoRA already", value=sorted(transformer.peft_config), fix="load the base")
    model.add_lora(lora)
    parameters = model.set_trainable((_PART,))
    initialise_lora(parameters, seed)
    transformer.unload_lora()
    model.set_trainable(())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    alpha = lora.rank if lora.alpha is None else lora.alpha
    return Adapter(parameters, alpha / lora.rank)


def read_stacked(model: SubjectModel, folder: Path) -> Adapter:
    """Read the LoRA in ``folder``, or that file, strictly, to generate images; the model is unchanged.

    The model must not run meanwhile. Raises InputError as :func:`~lookalike.models.adapter_files.read_adapter`, and for
    a LoRA that does more than add the product of two matrices (DoRA, a bias).
    """
    transformer: Any = model.transformer
    file = read_adapter(folder, transformer)
    if more := [name for name in ("use_dora", "lora_bias") if file.settings.get(name)]:
        raise InputError(
            f"the LoRA has {more[0]}, which cannot be beside others in a batch",
            value=file.origin,
            fix="generate with it alone (jobs/generate.py --model)",
        )
    parameters = {}
    try:
        load_adapter(transformer, file)
        for path, layer in lora_layers(transformer):
            up = layer.lora_B[ADAPTER_NAME].weight.detach() * layer.scaling[ADAPTER_NAME]  # which may differ by layer
            for name, weight in (("lora_A", layer.lora_A[ADAPTER_NAME].weight.detach()), ("lora_B", up)):
                place = f"transformer.{path}.{name}.{ADAPTER_NAME}.weight"
                parameters[place] = nn.Parameter(weight, requires_grad=False)
    finally:
        transformer.unload_lora()  # what stayed would change the images of all
    return Adapter(parameters, 1.0)


class AdapterStack:
    """Adds the updates of several adapters to the DiT of ``model``, whose weights are frozen.

    While no rows are routed (:meth:`route`), the model computes as without it. :meth:`close` removes it.
    """

    def __init__(self, model: SubjectModel) -> None:
        self.model = model
        """The model; use it inside :meth:`route`."""
        self._hooked: dict[str, Any] = {}
        self._groups: list[tuple[Adapter, int]] = []

    @contextmanager
    def route(self, groups: Sequence[tuple[Adapter | None, int]]) -> Iterator[None]:
        """Return a context in which the first rows of a batch go through the first adapter, the next through the next.

        Args:
            groups: each adapter with its number of rows, in the order of the rows; None is the base alone. A batch may
                have a multiple of these rows per adapter, as long as those of one stay together.

        The backward pass of a model with gradient checkpointing must be inside the context, too.
        """
        before = self._groups
        self._groups = [(adapter or _NO_ADAPTER, rows) for adapter, rows in groups if rows]
        for adapter, _ in self._groups:
            for path in adapter.layers:
                if path not in self._hooked:
                    layer = self.model.get_submodule(path)
                    self._hooked[path] = layer.register_forward_hook(_hook(self, path))
        try:
            yield
        finally:
            self._groups = before

    def alone(self, adapter: Adapter) -> nn.Module:
        """Return a module that computes as the model does with this adapter in all rows."""
        return _Alone(self, adapter)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._hooked.values():
            handle.remove()
        self._hooked.clear()

    def update(self, path: str, rows: Tensor) -> Tensor | None:
        """Compute what the adapters add to the output of the layer at ``path``.

        Args:
            path: of the layer in the model.
            rows: its input, ``[B, …, I]``.

        Returns ``[B, …, O]``; None if no row's adapter changes this layer.
        """
        if not self._groups:
            return None
        weights = [adapter.layers.get(path) for adapter, _ in self._groups]
        if not any(weights):
            return None
        total = sum(count for _, count in self._groups)
        assert len(rows) % total == 0, f"{len(rows)} rows for adapters of {total}"
        counts = [count * (len(rows) // total) for _, count in self._groups]
        known = [pair for pair in weights if pair is not None]
        if len(set(counts)) == 1 and len(known) == len(weights) > 1:
            return self._stacked(known, rows)
        parts = []
        for (adapter, _), pair, part in zip(self._groups, weights, rows.split(counts), strict=True):
            if pair is None:
                parts.append(part.new_zeros(*part.shape[:-1], known[0][1].shape[0]))
            else:
                down, up = (weight.to(part.dtype) for weight in pair)
                parts.append(part @ down.T @ up.T * adapter.scale)
        return torch.cat(parts)

    def _stacked(self, weights: Sequence[tuple[Tensor, Tensor]], rows: Tensor) -> Tensor:
        """As :meth:`update`, for as many rows of each adapter; ranks are padded with zeros."""
        rank = max(len(down) for down, _ in weights)
        down_ARI = torch.stack([pad(down, (0, 0, 0, rank - len(down))) for down, _ in weights])
        up_AOR = torch.stack(
            [
                pad(up * adapter.scale, (0, rank - up.shape[1]))
                for (_, up), (adapter, _) in zip(weights, self._groups, strict=True)
            ]
        )
        rows_ANI = rows.reshape(len(weights), -1, rows.shape[-1])
        hidden_ANR = rows_ANI @ down_ARI.to(rows.dtype).transpose(1, 2)
        return (hidden_ANR @ up_AOR.to(rows.dtype).transpose(1, 2)).view(*rows.shape[:-1], -1)


class _Alone(nn.Module):
    """The model with one adapter. It has no parameters of its own: those of the model are of all."""

    def __init__(self, stack: AdapterStack, adapter: Adapter) -> None:
        super().__init__()
        self._route = (stack, adapter)  # in a tuple, so that the model is no submodule

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        stack, adapter = self._route
        with stack.route([(adapter, 1)]):
            return stack.model(*args, **kwargs)  # type: ignore[no-any-return]


_NO_ADAPTER = Adapter({}, 0.0)


def state_of(adapter: Adapter) -> Mapping[str, Tensor]:
    """Return the weights by name, detached; they change with the next step."""
    return {name: parameter.detach() for name, parameter in adapter.parameters.items()}


def _hook(stack: AdapterStack, path: str) -> Any:
    def add(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        update = stack.update(path, inputs[0])
        return output if update is None else output + update.to(output.dtype)

    return add


def _layer_of(name: str) -> str:
    """The layer's path in the model: of ``transformer.…to_q.lora_A.default.weight`` what is before ``.lora_A``."""
    return name.partition(".lora_")[0]
