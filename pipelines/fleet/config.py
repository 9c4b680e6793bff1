"""The configuration of `jobs/finetune_fleet.py`."""

from dataclasses import field
from typing import Annotated

from annotated_types import Ge, Le

from lookalike.config import NOT_IDENTITY
from lookalike.values import Count, NonNegative, Positive, configuration
from pipelines.actors import ActorConfig


@configuration()
class FleetConfig:
    """Work through a folder of finetune requests, several at a time, on one base that is in memory once."""

    requests: str
    """URI of a folder with a YAML or JSON file for each request: the settings of ``jobs/finetune.py run`` without those
    below, which the operator sets for all."""
    store: str
    """URI of the store, as for a finetune."""
    model: str = "models:/lookalike-mini@champion"
    """The model that all requests start from: a registered model, or a bundle's URI."""
    base: str | None = None
    """URI of that model's bundle, if it was moved since it was registered."""
    distractors: str | None = None
    """URI of a data set of other subjects, as for a finetune."""
    tracking: str | None = None
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI."""
    workers: Annotated[NonNegative, Le(10_000)] = 0
    """Ray actors that do the work, each with the base in memory; with ``use_gpu`` each has a GPU. One that dies is
    started anew, and its requests resume. 0: this process does the work."""
    worker_cpus: Annotated[float, Ge(0), Le(1_024)] = 0.1
    """Logical CPUs that each of the ``workers`` reserves; curation of their requests needs one that is free."""
    at_once: Count = 4
    """Requests that a worker has in work at a time: while some train together, others are prepared or evaluated."""
    quota: Count | None = None
    """Requests of one customer in work at a time; null: as many as are free, if no one else waits."""
    max_rows: Count = 32
    """Samples of one training pass, of all requests together, at most."""
    use_gpu: bool = False
    """Train on a GPU."""
    threads: Count = 1
    """CPU threads of a worker for each of its passes; passes and evaluations run beside each other."""
    tries: Annotated[int, Ge(1)] = 3
    """How often a request is tried that fails because something did not answer, or whose worker died."""
    serve: bool = False
    """Wait for further requests, instead of ending when all are done."""
    poll_s: Positive = 5.0
    """Seconds between two looks at the folder; a large one is looked at less often."""
    actors: ActorConfig = field(default_factory=lambda: ActorConfig(count=0), metadata=NOT_IDENTITY)
    """The actors that curate and evaluate; by default this process does."""
