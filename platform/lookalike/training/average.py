"""The moving average of the trained weights: its configuration and its update.

It is kept as one more tensor of the optimizer's state, so that it is sharded, offloaded and saved as that state is.
"""

from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt, Lt

from lookalike.values import configuration

if TYPE_CHECKING:
    from torch import optim

AVERAGE = "ema"
"""Its name in an optimizer's state and in checkpoints."""


@configuration("ema")
class EmaConfig:
    """An exponential moving average of the trained weights."""

    decay: Annotated[float, Gt(0), Lt(1)] | None = None
    """Its decay, such as 0.999; by default none is kept. The paper has none, and it costs one more fp32 copy. In early
    steps the decay is ``(1 + steps) / (10 + steps)``, so that the initial weights fade soon. A run that keeps an
    average validates and exports it."""

    def decay_after(self, steps: int) -> float:
        """The decay of the update that follows the ``steps``-th optimizer step, counted from 1."""
        return min(self.decay or 0.0, (1 + steps) / (10 + steps))


def update_average(optimizer: "optim.Optimizer", ema: EmaConfig, steps: int) -> None:
    """Move the average of each tensor that ``optimizer`` updates (under ZeRO-3 this rank's partitions) towards it."""
    import torch

    if ema.decay is None or not optimizer.state:
        return
    with torch.no_grad():
        averages = [state[AVERAGE] for state in optimizer.state.values()]
        torch._foreach_lerp_(averages, list(optimizer.state), 1 - ema.decay_after(steps))
