"""Erase what MLflow holds about a customer or a subject: models, versions, aliases, runs, experiments, traces.

MLflow's own deletion only marks runs, experiments and logged models as deleted. ``mlflow gc`` removes them, which needs
its database: it runs here for a database URI (``sqlite:``, ``postgresql:``, …). A server's database cannot be reached
from here, so its operator has to run ``mlflow gc``; until then :meth:`TrackedErasure.left` names what is left.
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import quote

from lookalike.errors import ConfigError, InputError, RefusedError
from lookalike.process_wide import alone_in_process
from lookalike.registry import erasure_sql
from lookalike.registry.names import SEPARATOR, validate_identifier
from lookalike.storage import open_store
from lookalike.storage.purge import purge
from lookalike.tracking.connection import connect, is_missing, mlflow_errors

log = logging.getLogger(__name__)

_PAGE = 1000  # entries of one answer, MLflow's limit for most searches
_AT_ONCE = 100  # runs that one call of gc removes
_SHARED = "lookalike"  # the default experiment of jobs/train.py, which base models use
_NEWEST_MS = 1 << 53


@dataclass(frozen=True)
class Tracked:
    """What MLflow holds about a customer or a subject, by name or id."""

    models: list[str] = field(default_factory=list)
    versions: int = 0
    experiments: list[str] = field(default_factory=list)
    """Ids; of a customer only, since its subjects share them."""
    runs: list[str] = field(default_factory=list)
    traces: int = 0
    logged_models: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing."""
        return not any(asdict(self).values())

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind."""
        return {name: value if isinstance(value, int) else len(value) for name, value in asdict(self).items()}


class TrackedErasure:
    """The entries of one customer, or of one of its subjects, in MLflow at ``uri``.

    Raises RefusedError if the user of a server with users is not an administrator: MLflow hides what others may not
    read, so that nothing would seem to be left.
    """

    def __init__(self, uri: str, customer: str, subject: str | None = None) -> None:
        self.uri, self.subject = uri, subject
        self.customer = validate_identifier(customer, "customer id")
        self.name = f"{customer}{SEPARATOR}{subject}" if subject else None
        if customer == _SHARED:
            what = "the experiment of this customer's name is the one of base models"
            raise ConfigError(what, value=customer, fix="remove its runs in MLflow by hand, and then its prefix")
        self._client = connect(uri)
        if uri.startswith("http"):
            _check_administrator(uri)

    def find(self, recorded: Iterable[str] = ()) -> Tracked:
        """List everything, also what was deleted in MLflow before.

        Args:
            recorded: ids of runs that records in the store name. They count only if they are in the customer's
                experiment and belong to no other subject, since whoever can write the store could name any run.
        """
        with mlflow_errors(self.uri):
            experiments = self._experiments()
            runs = set(self._runs(list(experiments), recorded))
            models = self._models()
            return Tracked(
                models=models,
                versions=sum(1 for name in models for _ in self._versions(name)),
                experiments=[] if self.subject else sorted(experiments),
                runs=sorted(runs),
                traces=0 if self.subject else sum(1 for _ in self._traces(list(experiments))),
                logged_models=self._logged_models(list(experiments), runs),
            )

    def erase(self, tracked: Tracked) -> None:
        """Remove everything that can be removed from here. A second call completes one that was killed."""
        with mlflow_errors(self.uri):
            for name in tracked.models:
                self._gone(self._client.delete_registered_model, name)
            for experiment in tracked.experiments:
                self._gone(self._client.delete_traces, experiment, max_timestamp_millis=_NEWEST_MS)
            for model in tracked.logged_models:
                self._gone(self._client.delete_logged_model, model)
            for number, run in enumerate(tracked.runs, 1):
                if self._stage(self._client.get_run, run) == "active":
                    self._client.delete_run(run)
                if number % _PAGE == 0:
                    log.info("%d of %d runs deleted in MLflow", number, len(tracked.runs))
            for experiment in tracked.experiments:
                if self._stage(self._client.get_experiment, experiment) == "active":
                    self._client.delete_experiment(experiment)
            if not self.uri.startswith("http"):
                self._collect(tracked)

    def left(self, tracked: Tracked, texts: list[str], pattern: re.Pattern[str]) -> list[str]:
        """Describe what is still there; empty if there is nothing.

        Args:
            tracked: what was found before anything was removed.
            texts: fixed texts of which each row that ``pattern`` matches holds one, to be searched for in a database.
            pattern: names, places and hashes that must be nowhere in a database.
        """
        now = self.find(tracked.runs)
        found = [f"{count} {kind} in MLflow" for kind, count in now.counts.items() if count]
        with mlflow_errors(self.uri):
            for run in tracked.runs if not now.runs else ():
                if self._stage(self._client.get_run, run) is not None:
                    found.append(f"the run {run} in MLflow")
            if not found and not self.uri.startswith("http"):
                found += erasure_sql.search(self.uri, texts, pattern, tracked.runs)
        return found

    def steps(self, tracked: Tracked) -> list[str]:
        """Commands for the operator of a server, which alone reaches its database."""
        if not self.uri.startswith("http"):
            return []
        ids = {"--run-ids": tracked.runs, "--experiment-ids": tracked.experiments}
        ids["--logged-model-ids"] = tracked.logged_models
        given = " ".join(f"{flag} {','.join(values)}" for flag, values in ids.items() if values)
        return [
            f"on the machine of the MLflow server: mlflow gc --backend-store-uri DATABASE --tracking-uri {self.uri} "
            f"{given} (it also removes whatever else was deleted in MLflow of a kind that is not named by ids here)"
        ]

    def _experiments(self) -> dict[str, str]:
        """Name by id, of the customer's experiments: ``ID``, and ``ID (2)`` after ``ID`` was deleted in MLflow."""
        ours = re.compile(rf"{re.escape(self.customer)}(?: \(\d+\))?")
        search, name = self._client.search_experiments, f"name LIKE '{self.customer}%'"
        found = _paged(lambda token: search(view_type=_view_all(), filter_string=name, page_token=token))
        return {str(item.experiment_id): item.name for item in found if ours.fullmatch(item.name)}

    def _runs(self, experiments: list[str], recorded: Iterable[str]) -> Iterator[str]:
        if not experiments:
            return
        query = f"params.owner = '{self.name}'" if self.name else ""
        search = self._client.search_runs
        for run in _paged(lambda token: search(experiments, query, _view_all(), _PAGE, page_token=token)):
            self._check_owner(run)
            yield run.info.run_id
        for run_id in recorded:
            try:
                run = self._client.get_run(run_id)
            except Exception as error:
                if not is_missing(error):
                    raise
                continue
            owner = run.data.params.get("owner")
            if run.info.experiment_id in experiments and (not self.name or owner in (None, "None", self.name)):
                yield run_id

    def _check_owner(self, run: Any) -> None:
        owner = str(run.data.params.get("owner") or "None")
        if owner != "None" and not owner.startswith(f"{self.customer}{SEPARATOR}"):
            what = f"the run {run.info.run_id} of {owner} is in the experiment of {self.customer}"
            raise InputError(what, value=self.uri, fix="move it to its own experiment, or remove it in MLflow")

    def _models(self) -> list[str]:
        prefix = f"{self.customer}{SEPARATOR}"
        query = f"name = '{self.name}'" if self.name else f"name LIKE '{prefix}%'"
        search = self._client.search_registered_models
        found = _paged(lambda token: search(query, max_results=_PAGE, page_token=token))
        return sorted(item.name for item in found if item.name == self.name or not self.name)

    def _versions(self, name: str) -> Iterator[Any]:
        search = self._client.search_model_versions
        return _paged(lambda token: search(f"name='{name}'", page_token=token))

    def _traces(self, experiments: list[str]) -> Iterator[Any]:
        if not experiments:
            return iter(())
        search = self._client.search_traces
        return _paged(lambda token: search(locations=experiments, include_spans=False, page_token=token))

    def _logged_models(self, experiments: list[str], runs: set[str]) -> list[str]:
        if not experiments:
            return []
        search = self._client.search_logged_models
        found = {
            model.model_id
            for model in _paged(lambda token: search(experiments, page_token=token))
            if not self.subject or model.source_run_id in runs
        }
        if not self.uri.startswith("http"):
            found |= erasure_sql.deleted_logged_models(self.uri, experiments, runs if self.subject else None)
        return sorted(found)

    def _collect(self, tracked: Tracked) -> None:
        """Remove the rows and the artifacts of what was deleted, as ``mlflow gc`` does, and nothing else.

        The command without ids of a kind removes everybody's deleted entries of that kind. Its function takes none.
        """
        from mlflow.cli import _gc_tracking_resources as collect

        store = self._client._tracking_client.store
        none: dict[str, Any] = {"older_than": None, "time_delta": 0, "ignore_not_found": True}
        with alone_in_process(), contextlib.redirect_stdout(None):  # it prints a line with the id of each run
            for first in range(0, len(tracked.runs), _AT_ONCE):
                some = tracked.runs[first : first + _AT_ONCE]
                collect(store, some, None, [], skip_experiments=True, skip_logged_models=True, **none)
                log.info("%d of %d runs removed from MLflow", first + len(some), len(tracked.runs))
            if tracked.logged_models:
                collect(store, [], None, tracked.logged_models, skip_experiments=True, skip_logged_models=False, **none)
            ids = [each for each in tracked.experiments if self._stage(self._client.get_experiment, each)]
            for place in filter(None, map(self._artifacts, ids)):
                purge(open_store(place))
            if ids:
                collect(store, [], ids, [], skip_experiments=False, skip_logged_models=True, **none)
        erasure_sql.compact(self.uri)

    def _artifacts(self, experiment: str) -> str | None:
        """The place of an experiment's artifacts, if it is the experiment's alone."""
        found = self._client.get_experiment(experiment)
        place = str(found.artifact_location or "").rstrip("/")
        alone = place.rpartition("/")[2] in (found.name, quote(found.name, safe=""), experiment)
        return place if alone and place.startswith(("file:", "s3:", "/")) else None

    def _stage(self, get: Any, key: str) -> str | None:
        """``active`` or ``deleted``; None if there is no such entry."""
        try:
            found = get(key)
        except Exception as error:
            if is_missing(error):
                return None
            raise
        return str(getattr(found, "info", found).lifecycle_stage)

    def _gone(self, delete: Any, *arguments: Any, **named: Any) -> None:
        """Delete something that an attempt before may have deleted."""
        try:
            delete(*arguments, **named)
        except Exception as error:
            if not is_missing(error):
                raise


def _paged(search: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def _view_all() -> int:
    from mlflow.entities import ViewType

    return int(ViewType.ALL)


def _check_administrator(uri: str) -> None:
    """Raise RefusedError for a user of a server with users who is no administrator."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if not user:
        return
    from mlflow.server.auth.client import AuthServiceClient

    try:
        is_administrator = bool(AuthServiceClient(uri).get_user(user).is_admin)
    except Exception as error:
        if is_missing(error) or "404" in str(error):  # a server without users
            return
        is_administrator = False
    if not is_administrator:
        raise RefusedError(
            "this MLflow user is no administrator, so it cannot see everything that has to be erased",
            value=uri,
            fix="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of an administrator",
        )
