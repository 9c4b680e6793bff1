"""What jobs have made of snapshots and bundles, by the records that they left: runs, generations, evaluations.

Each output prefix has the claim of its job (``run.json``), with the hashes of what it read. So a job is found by what
it read, also if it was killed before it wrote a result, and wherever its inputs lie now.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lookalike.bundles.manifest import MANIFEST
from lookalike.errors import ConfigError, InputError, describe
from lookalike.registry.inventory import documents
from lookalike.registry.versions import identify
from lookalike.storage import Store, open_store, read_object
from lookalike.storage.claim import RECORD, read_claim

log = logging.getLogger(__name__)

_CLAIM = re.compile(r"run\.json")
_RESULT = "result.json"
_BUNDLE = "bundle"  # below a run


@dataclass(frozen=True)
class Run:
    """A training run."""

    uri: str
    snapshot: dict[str, Any]
    """``uri``, ``version`` and ``sha256`` (fingerprint of the manifest) of what it trains on."""
    base_uri: str | None
    """Where its base was; None for a run that starts from a preset."""
    base_sha256: str | None
    """The bundle that it starts from; None for a run that starts from a preset."""
    bundle_sha256: str | None
    """The bundle that it made; None for a run that is not finished."""
    config: dict[str, Any]
    """Its resolved configuration."""
    steps: int | None
    """Optimizer steps that it took; None for a run that is not finished."""
    tracking_run: str | None
    """Id of its run in MLflow."""

    @property
    def bundle_uri(self) -> str:
        """Where it writes its bundle."""
        return open_store(self.uri).child(_BUNDLE).uri


@dataclass(frozen=True)
class Use:
    """A generation or an evaluation: images that a model made."""

    uri: str
    kind: str
    """``generation`` or ``evaluation``."""
    bundles: tuple[str, ...]
    """Hashes of the bundles that made its images."""
    references: tuple[str, ...]
    """Fingerprints of the reference photos of a generation."""
    finished: bool
    """Whether it wrote its result."""


@dataclass(frozen=True)
class Unreadable:
    """A claim that cannot be read."""

    uri: str
    reason: str


def made_below(uris: Sequence[str]) -> Iterator[Run | Use | Unreadable]:
    """Yield the training runs, generations and evaluations below the stores, in the order of their places."""
    for info in documents(uris, _CLAIM):
        uri = info.key.removesuffix(f"/{RECORD}")
        try:
            record = read_record(open_store(uri))
        except (InputError, ConfigError) as error:
            yield Unreadable(info.key, describe(error))
            continue
        if record is not None:
            yield record


def read_record(store: Store) -> Run | Use | None:
    """Read what the job that claimed ``store`` has made; None for other jobs, and for a prefix without a claim.

    Raises InputError for a claim or a result that is damaged.
    """
    claim = read_claim(store)
    if claim is None:
        return None
    identity, config = claim["identity"], claim["config"]
    inputs = identity.get("inputs")
    if isinstance(identity.get("snapshot"), dict) and "stages" in identity:
        return _run(store, config)
    if isinstance(inputs, dict) and isinstance(inputs.get("bundle"), str) and "references" in inputs:
        references = tuple(map(str, inputs["references"]))
        return Use(store.uri, "generation", (inputs["bundle"],), references, store.exists("generations.json"))
    if isinstance(inputs, dict) and isinstance(inputs.get("bundles"), list) and "suite" in inputs:
        bundles = tuple(map(str, inputs["bundles"]))
        return Use(store.uri, "evaluation", bundles, (), store.exists("scores.json"))
    return None


def _run(store: Store, config: dict[str, Any]) -> Run:
    result = read_object(store, _RESULT) if store.exists(_RESULT) else {}
    bundle = store.child(_BUNDLE)
    sha256 = result.get("bundle_sha256")
    if sha256 is None and bundle.exists(MANIFEST):  # killed between the two
        sha256 = identify(bundle.uri)
    return Run(
        uri=store.uri,
        snapshot=config["snapshot"],
        base_uri=config.get("base"),
        base_sha256=config.get("base_sha256"),
        bundle_sha256=sha256,
        config={name: value for name, value in config.items() if name not in ("snapshot", "base_sha256", "order")},
        steps=result.get("steps"),
        tracking_run=result.get("tracking_run"),
    )


def run_of_bundle(bundle_uri: str, sha256: str) -> Run | None:
    """The training run that made the bundle, if the bundle still lies in it; None if not."""
    store = open_store(bundle_uri)
    if store.name != _BUNDLE:
        return None
    try:
        record = read_record(store.parent)
    except (InputError, ConfigError) as error:
        log.warning("the record of the run of %s cannot be read: %s", bundle_uri, error)
        return None
    return record if isinstance(record, Run) and record.bundle_sha256 == sha256 else None
