"""Ray Data beside work that needs every core."""

import time
from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback

_PACE_S = 0.02


class PacedExecution(ExecutionCallback):
    """Lets Ray Data's scheduling loop rest between its rounds.

    While a consumer is slower than its loaders, finished blocks make ``ray.wait`` return at once and the loop spins: on
    two cores it took as much time as the training itself.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Called after each round of the loop."""
        time.sleep(_PACE_S)


def pace(dataset: Any) -> None:
    """Let the loop that will execute this Ray dataset rest between its rounds."""
    context = dataset.context
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, PacedExecution]
