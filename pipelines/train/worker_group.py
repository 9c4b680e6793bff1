"""The worker group of a run: Ray Train's trainer, its restarts, and what becomes of its errors."""

import os
import uuid
from typing import TYPE_CHECKING

from lookalike.errors import LookalikeError, first_line
from lookalike.storage import Store
from lookalike.storage.arrow import arrow_filesystem
from lookalike.storage.lease import Lease
from lookalike.training import checkpoint
from lookalike.training.watchdog import HANGS
from lookalike.training.zero import check_schema, zero3_config
from pipelines.train.rank_entry import train_worker
from pipelines.train.settings import WorkerSettings

if TYPE_CHECKING:
    from ray.train import RunConfig


def fit(settings: WorkerSettings, store: Store, lease: Lease) -> None:
    """Train from the last checkpoint to the end of the curriculum, in this process or in a group of Ray Train's.

    Raises:
        LookalikeError: the group failed once more than ``max_failures`` allows, or Ray Train lost its controller.
        StoppedError, TrainingDivergedError, UnusableDataError: as the ranks raised them.
    """
    config, workers = settings.config, settings.config.workers
    if checkpoint.newest(store) >= config.total_steps:
        return
    if workers.num_workers == 0:
        from lookalike.training.ranks import Rank
        from pipelines.train.worker import run_rank

        run_rank(settings, Rank())
        return
    from ray.exceptions import RayActorError
    from ray.train import ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    check_schema(zero3_config(config, workers.num_workers))
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # its process reports nothing: we handle SIGTERM
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"settings": settings},
        torch_config=TorchConfig(backend="nccl" if workers.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(workers.min_workers, workers.num_workers) if workers.min_workers else workers.num_workers,
            elastic_resize_monitor_interval_s=workers.resize_every_s,
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus_per_worker, **({"GPU": 1} if workers.use_gpu else {})},
        ),
        run_config=attempt_config(store, workers.max_failures),
    )
    try:
        ended_early = trainer.fit().return_value
    except TrainingFailedError as error:
        lease.check()  # if the lease was lost, that is the reason
        hangs = sorted(info.key for info in store.list(f"{HANGS}/"))
        raise LookalikeError(
            f"training failed {workers.max_failures + 1} times",
            value=str(error),
            fix=f"stacks of ranks that hung are in {store.uri}: {', '.join(hangs)}" if hangs else "see the log above",
        ) from error
    except RayActorError as error:  # the controller died, and the ranks with it
        raise LookalikeError(
            "the controller of Ray Train's worker group died",
            value=first_line(error),
            fix="run the same command again: it resumes from the last checkpoint",
        ) from error
    if ended_early is not None:
        raise ended_early


def attempt_config(store: Store, max_failures: int) -> "RunConfig":
    """Configure what Ray Train keeps of one attempt, below the run in ``store``.

    Ray Train silently resumes what it finds under a name, and fails if part of it is missing. Runs resume from our
    checkpoints, so each attempt has a new name.
    """
    from ray.train import FailureConfig, RunConfig

    filesystem, path = arrow_filesystem(store.child("ray"))
    return RunConfig(
        name=f"attempt-{uuid.uuid4().hex[:12]}",
        storage_path=path,
        storage_filesystem=filesystem,
        failure_config=FailureConfig(max_failures=max_failures),
    )
