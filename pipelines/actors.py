"""Units of work on Ray Data, on a pool of actors that each hold a model, or as tasks."""

import logging
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

import numpy as np
import pyarrow as pa
from annotated_types import Le

from lookalike.errors import LookalikeError, RefusedError, UnreachableError
from lookalike.redaction import redact_logs
from lookalike.values import Count, NonNegative, configuration
from pipelines.entry import ray_session

log = logging.getLogger(__name__)

_ERROR = "lookalike_error"
_TASKS_PER_CORE, _UNITS_PER_TASK = 16, 4  # few units per task: cores wait for the last task
_ATTEMPTS, _PAUSE_S = 4, 1.0  # of a unit, and before the second attempt; later pauses are longer
_PERMANENT = (RefusedError, FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
_LINES = 200  # of progress in the log, at most

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


UnitActor = Callable[[Any], Callable[[Any], Columns]]
"""A class: built once from what all units share, and called with each unit, whose rows it returns."""

Units = int | Sequence[Any]
"""The number of units, which are then 0 … N - 1, or a small description of each of them."""

_T = TypeVar("_T")


def run_units(
    actor: UnitActor, shared: Any, units: Units, config: ActorConfig, *, noun: str = "batches"
) -> Iterator[pa.Table]:
    """Do all units, and yield the rows of each as it is done, in any order, with its number in a column ``unit``.

    A unit is one batch whose samples the plan fixed, independent of Ray Data's blocks, since float sums differ with the
    batch and results have to repeat. ``shared`` is sent to each actor once, a description only to the actor that does
    its unit. A unit that fails because a service or a disk does not answer is done again (:func:`retried`), as is one
    whose process died (by Ray). Raises the LookalikeError that an actor raised.
    """
    count = _count(units)
    if config.count == 0:
        do = actor(shared)
        described = range(count) if isinstance(units, int) else units
        tables = (pa.table(_with_unit(i, retried(partial(do, unit)))) for i, unit in enumerate(described))
        yield from _tables(tables, count, noun)
        return
    if count == 0:
        return
    import ray.data

    with ray_session():
        _set_up_ray_data()
        done = _descriptions(units, count).map_batches(
            _Adapter,
            fn_constructor_args=(actor, shared),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(config.count, count)),
            num_cpus=config.cpus,
            num_gpus=1 if config.use_gpu else 0,
        )
        yield from _tables(done.iter_batches(batch_size=None, batch_format="pyarrow"), count, noun)


def run_tasks(
    task: Callable[[Any, Any], Columns],
    shared: Any,
    units: Units,
    *,
    cpus: float = 1.0,
    noun: str = "tasks",
    few: int = 0,
) -> Iterator[pa.Table]:
    """Do units of work that need no model, as :func:`run_units` does: ``task(shared, unit)`` on any free worker.

    If there are many units per core, a Ray task does several. A worker process unpickles ``shared`` once. Up to ``few``
    units are done by this process, which saves the start of Ray.
    """
    count = _count(units)
    if count <= few:
        described = range(units) if isinstance(units, int) else units
        done = (pa.table(_with_unit(number, task(shared, unit))) for number, unit in enumerate(described))
        yield from _tables(done, count, noun)
        return
    import ray.data

    with ray_session():
        _set_up_ray_data()
        sent = ray.put(shared)  # to a node once for all units that run there
        at_once = max(1, int(ray.cluster_resources().get("CPU", 0) / cpus))
        blocks = max(min(count, _TASKS_PER_CORE * at_once), -(-count // _UNITS_PER_TASK))
        done = _descriptions(units, blocks).map_batches(_run_task, fn_args=(task, [sent]), batch_size=1, num_cpus=cpus)
        yield from _tables(done.iter_batches(batch_size=None, batch_format="pyarrow"), count, noun)


def retried(do: Callable[[], _T]) -> _T:
    """Return ``do()``. If a service or a disk does not answer, wait and try again, four times in all."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return do()
        except (UnreachableError, OSError) as error:
            if not may_pass(error):
                raise
            log.warning("attempt %d of %d failed: %s", attempt, _ATTEMPTS, error)
            time.sleep(_PAUSE_S * 3 ** (attempt - 1))
    return do()


def may_pass(error: BaseException) -> bool:
    """Whether what failed by ``error`` may succeed later: a service or a disk did not answer."""
    return isinstance(error, (UnreachableError, OSError)) and not isinstance(error, _PERMANENT)


def _count(units: Units) -> int:
    return units if isinstance(units, int) else len(units)


def _descriptions(units: Units, blocks: int) -> Any:
    """A dataset of units, made in this process: ``ray.data.range`` would start tasks to make it."""
    import ray.data

    if isinstance(units, int):
        return ray.data.from_items([{"id": i} for i in range(units)], override_num_blocks=blocks)
    items = [{"id": i, "unit": pickle.dumps(unit)} for i, unit in enumerate(units)]
    return ray.data.from_items(items, override_num_blocks=blocks)


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
    lines = 0
    for table in tables:
        if _ERROR in table.column_names:
            raise pickle.loads(table[_ERROR].drop_null()[0].as_py())
        seen.update(table["unit"].to_pylist())
        if len(seen) * min(units, _LINES) // units > lines:
            lines = len(seen) * min(units, _LINES) // units
            log.info("%d of %d %s done", len(seen), units, noun)
        yield table
    assert len(seen) == units, f"Ray Data gave {len(seen)} of {units} units"


def _rows(batch: Columns, do: Callable[[Any], Columns]) -> Columns:
    """The rows of a unit. Ray Data keeps only the text of an exception, so our errors are returned as a row."""
    number = int(batch["id"][0])
    try:
        unit = pickle.loads(batch["unit"][0]) if "unit" in batch else number  # of this job
        columns = retried(partial(do, unit))
    except LookalikeError as error:
        columns = {_ERROR: np.array([pickle.dumps(error)], dtype=object)}
    return _with_unit(number, columns)


def _with_unit(unit: int, columns: Columns) -> Columns:
    return {"unit": np.full(len(next(iter(columns.values()))), unit), **columns}


_unpickled: tuple[str, Any] = "", None
"""What the tasks of this process shared last, by the id of its object."""


def _run_task(batch: Columns, task: Callable[[Any, Any], Columns], sent: list[Any]) -> Columns:
    import ray

    global _unpickled
    redact_logs()
    if _unpickled[0] != sent[0].hex():
        _unpickled = "", None  # frees the last one first
        _unpickled = sent[0].hex(), ray.get(sent[0])
    return _rows(batch, partial(task, _unpickled[1]))


class _Adapter:
    """The callable class that Ray Data calls with a batch of one row."""

    def __init__(self, actor: UnitActor, shared: Any) -> None:
        redact_logs()
        self._do: Callable[[Any], Columns]
        try:
            self._do = actor(shared)
        except LookalikeError as error:
            self._do = partial(_fail, error)

    def __call__(self, batch: Columns) -> Columns:
        return _rows(batch, self._do)


def _fail(error: LookalikeError, _unit: Any) -> Columns:
    raise error
