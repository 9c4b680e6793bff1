"""Numbered units of work on Ray Data, on a pool of actors that each hold a model, or as tasks."""

import logging
import pickle
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from annotated_types import Le

from lookalike.errors import LookalikeError
from lookalike.redaction import redact_logs
from lookalike.values import Count, NonNegative, configuration
from pipelines.entry import ray_session

log = logging.getLogger(__name__)

_ERROR = "lookalike_error"
_TASKS_PER_CORE, _UNITS_PER_TASK = 16, 4  # few units per task: cores wait for the last task

Columns = dict[str, np.ndarray]


@configuration("actors")
class ActorConfig:
    """The actors that hold the model."""

    count: Annotated[NonNegative, Le(10_000)] = 2
    """Actors, each with a copy of the model. 0: the job's own process does one unit
    after the other, which saves the start of actors for a few units, and can be debugged."""
    cpus: Annotated[float, Le(10_000)] = 0.5
    """Logical CPUs that an actor reserves; below 1 so that a small machine has CPU left for reading."""
    threads: Annotated[Count, Le(1_024)] = 1
    """PyTorch threads of an actor (CPU)."""
    use_gpu: bool = False
    """One GPU for each actor."""

    def prepare(self) -> str:
        """Set the threads of the actor that calls this, and return the device for its model."""
        import torch

        if self.use_gpu:
            return "cuda"
        torch.set_num_threads(self.threads)
        return "cpu"


UnitActor = Callable[[Any], Callable[[int], Columns]]
"""A class: built once from the whole plan of work, and called with the number of a unit, whose rows it returns."""


def run_units(
    actor: UnitActor, work: Any, units: int, config: ActorConfig, *, noun: str = "batches"
) -> Iterator[pa.Table]:
    """Do the units 0 … ``units`` - 1, and yield the rows of each as it is done, in any order, with a column ``unit``.

    A unit is one batch whose samples the plan fixed, independent of Ray Data's blocks, since float sums differ with the
    batch and results have to repeat. Raises the LookalikeError that an actor raised.
    """
    if config.count == 0:
        do = actor(work)
        yield from _tables((pa.table(_with_unit(unit, do(unit))) for unit in range(units)), units, noun)
        return
    import ray.data

    with ray_session():
        _set_up_ray_data()
        done = _numbers(units, units).map_batches(
            _Adapter,
            fn_constructor_args=(actor, work),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(config.count, units)),
            num_cpus=config.cpus,
            num_gpus=1 if config.use_gpu else 0,
        )
        yield from _tables(done.iter_batches(batch_size=None, batch_format="pyarrow"), units, noun)


def run_tasks(
    task: Callable[[Any, int], Columns],
    work: Any,
    units: int,
    *,
    cpus: float = 1.0,
    noun: str = "tasks",
    few: int = 0,
) -> Iterator[pa.Table]:
    """Do units of work that need no model, as :func:`run_units` does: ``task(work, unit)`` on any free worker.

    If there are many units per core, a Ray task does several. Up to ``few`` units are done by this process, which saves
    the start of Ray.
    """
    if units <= few:
        yield from _tables((pa.table(_with_unit(unit, task(work, unit))) for unit in range(units)), units, noun)
        return
    import ray.data

    with ray_session():
        _set_up_ray_data()
        shared = ray.put(work)  # sent to a node once for all units that run there
        at_once = max(1, int(ray.cluster_resources().get("CPU", 0) / cpus))
        numbers = _numbers(units, max(min(units, _TASKS_PER_CORE * at_once), -(-units // _UNITS_PER_TASK)))
        done = numbers.map_batches(_run_task, fn_args=(task, [shared]), batch_size=1, num_cpus=cpus)
        yield from _tables(done.iter_batches(batch_size=None, batch_format="pyarrow"), units, noun)


def _numbers(units: int, blocks: int) -> Any:
    """A dataset of unit numbers, made in this process: ``ray.data.range`` would start tasks to make it."""
    import ray.data

    return ray.data.from_items([{"id": unit} for unit in range(units)], override_num_blocks=blocks)


def _set_up_ray_data() -> None:
    """Show our progress only, and schedule short units without delays (Ray 2.60; unknown attributes do nothing)."""
    import ray.data
    from ray.data._internal.execution import streaming_executor_state
    from ray.data._internal.execution.resource_manager import ResourceManager

    ray.data.DataContext.get_current().enable_progress_bars = False
    # It requests its resources without waiting for the answer, runs one task at a time and asks again after 1 s.
    ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = 0.1
    # It polls for finished tasks every 0.1 s, twice for each, while a core waits for its next task.
    streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = 0.02
    for noisy in ("ray.data", "ray.data._internal.execution.streaming_executor"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _tables(tables: Iterable[pa.Table], units: int, noun: str) -> Iterator[pa.Table]:
    """Log each of ``tables``, or raise the error that it holds."""
    seen: set[int] = set()
    for table in tables:
        if _ERROR in table.column_names:
            raise pickle.loads(table[_ERROR].drop_null()[0].as_py())
        seen.update(table["unit"].to_pylist())
        log.info("%d of %d %s done", len(seen), units, noun)
        yield table
    assert len(seen) == units, f"Ray Data gave {len(seen)} of {units} units"


def _rows(unit: int, do: Callable[[int], Columns]) -> Columns:
    """The rows of a unit. Ray Data keeps only the text of an exception, so our errors are returned as a row."""
    try:
        columns = do(unit)
    except LookalikeError as error:
        columns = {_ERROR: np.array([pickle.dumps(error)], dtype=object)}
    return _with_unit(unit, columns)


def _with_unit(unit: int, columns: Columns) -> Columns:
    return {"unit": np.full(len(next(iter(columns.values()))), unit), **columns}


def _run_task(batch: Columns, task: Callable[[Any, int], Columns], shared: list[Any]) -> Columns:
    import ray

    redact_logs()
    return _rows(int(batch["id"][0]), partial(task, ray.get(shared[0])))


class _Adapter:
    """The callable class that Ray Data calls with a batch of one row."""

    def __init__(self, actor: UnitActor, work: Any) -> None:
        redact_logs()
        self._do: Callable[[int], Columns]
        try:
            self._do = actor(work)
        except LookalikeError as error:
            self._do = partial(_fail, error)

    def __call__(self, batch: Columns) -> Columns:
        return _rows(int(batch["id"][0]), self._do)


def _fail(error: LookalikeError, _unit: int) -> Columns:
    raise error
