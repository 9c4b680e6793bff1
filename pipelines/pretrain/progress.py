"""Train a part with a progress bar in the terminal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from lookalike.training import parts
from pipelines.pretrain.config import PretrainConfig


def fit_part(
    model: Any,
    loss: Callable[[np.random.Generator, int], tuple[Tensor, parts.Metrics]],
    config: PretrainConfig,
    run: Path,
) -> parts.Metrics:
    """Train ``model`` as :func:`lookalike.training.parts.fit` does, in the folder ``run``."""
    with tqdm(total=config.fit.steps, desc=config.part, unit="step") as bar:

        def report(step: int, figures: parts.Metrics) -> None:
            bar.update(step - bar.n)
            if step % 20 == 0:
                bar.set_postfix({name: f"{value:.3f}" for name, value in figures.items()})

        return parts.fit(model, loss, config.fit, run, report)
