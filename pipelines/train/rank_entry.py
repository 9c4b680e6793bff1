"""A rank's entry point in a Ray Train worker; light at import, since Ray's own actors import it, too."""

import logging
import os
import warnings
from typing import Any

from lookalike.errors import LookalikeError, StoppedError
from lookalike.redaction import redact_logs
from pipelines.train.settings import WorkerSettings


def train_worker(loop_config: dict[str, Any]) -> LookalikeError | None:
    """Train as one rank of Ray Train's worker group.

    Returns the error that ended training early if a restart would repeat it: an exception would make Ray Train start
    the group again. A lost lease is raised, since the first rank alone notices it and the others would wait for it; the
    restarted group ends with the same error.
    """
    import ray.train

    from lookalike.training.loop import TrainingDivergedError
    from lookalike.training.quarantine import UnusableDataError
    from lookalike.training.ranks import Rank
    from pipelines.train.worker import run_rank

    redact_logs()
    for ours in ("lookalike", "pipelines"):
        logging.getLogger(ours).setLevel(os.environ.get("LOOKALIKE_LOG_LEVEL", "INFO"))
    logging.getLogger("botocore").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch deprecates, at every step
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    settings: WorkerSettings = loop_config["settings"]
    context = ray.train.get_context()
    rank = Rank(context.get_world_rank(), context.get_world_size())
    try:
        run_rank(settings, rank)
    except (StoppedError, TrainingDivergedError, UnusableDataError) as error:
        return error
    return None
