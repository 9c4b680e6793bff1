"""A bundle that is to be judged: verified, with its scores, and described for the registry.

The gate uses scores only after they were computed again from their measurements."""

from dataclasses import dataclass

from lookalike.bundles.manifest import MANIFEST, parse_manifest
from lookalike.bundles.transfer import verify_bundle
from lookalike.config import fingerprint
from lookalike.errors import InputError
from lookalike.evaluation.against_base import differences_to_base
from lookalike.evaluation.estimates import Estimate
from lookalike.evaluation.gate import GateConfig
from lookalike.evaluation.measurements import MEASUREMENTS
from lookalike.evaluation.scores import GRID, SCORES, Scores
from lookalike.registry.evidence import Evidence, compared_with_base, evidence_of
from lookalike.registry.names import check_ownership
from lookalike.registry.versions import manifest_sha256
from lookalike.storage import Store, locate_object, open_store


@dataclass(frozen=True)
class Candidate:
    """A bundle to be judged by the gate."""

    model: str
    """Name of the registered model: an identifier, or ``CUSTOMER--SUBJECT``."""
    bundle_uri: str
    """Where the bundle is."""
    scores_uri: str
    """Its ``scores.json``, or the prefix that holds one."""


@dataclass(frozen=True)
class Examined:
    """A candidate whose bundle and scores were verified."""

    sha256: str
    """Identity of its bundle."""
    scores: Scores
    """Its scores as written."""
    proven: Scores
    """Its scores, computed again from the measurements."""
    differences: dict[str, Estimate]
    """Paired differences to its base."""
    evidence: Evidence
    """What a decision about it rests on."""


def read_candidate(candidate: Candidate, gate: GateConfig) -> Examined:
    """Verify the candidate's bundle, and compute its scores again from their measurements.

    Raises InputError if bundle, scores or measurements are missing or damaged, or do not belong together.
    """
    scores = read_scores(candidate.scores_uri)
    try:
        sha256 = verify_bundle(candidate.bundle_uri)
    except InputError as error:
        fix = f"{error.fix}; check --bundle: if the bundle was moved, pass its new location with --bundle"
        raise InputError(error.what, value=error.value, fix=fix) from error
    if scores.bundle.sha256 != sha256:
        raise InputError(
            "the scores belong to another bundle",
            value=f"{candidate.scores_uri}: {scores.bundle.uri}",
            fix=f"evaluate {open_store(candidate.bundle_uri).uri} first, and pass those scores",
        )
    measurements, where = _measurements(candidate.scores_uri)
    proven = scores.proven(measurements, where)
    differences = differences_to_base(measurements, compared_with_base(gate), proven.config.get("seed", 0), where)
    grid_uri = _located(candidate.scores_uri)[0].uri_of(GRID)
    return Examined(sha256, scores, proven, differences, evidence_of(proven, measurements, where, gate, grid_uri))


def version_tags(candidate: Candidate, sha256: str, log_uri: str) -> dict[str, str]:
    """Tags of the candidate's version. Raises InputError if its bundle may not be one of the model's versions."""
    store = open_store(candidate.bundle_uri)
    manifest = parse_manifest(store.read(MANIFEST), store.uri_of(MANIFEST))
    check_ownership(candidate.model, store.uri, manifest, log_uri)
    return {
        "bundle_uri": store.uri,
        "bundle_sha256": sha256,
        "manifest_sha256": manifest_sha256(store.uri),
        "scores_uri": candidate.scores_uri,
        "parent": manifest["base"]["sha256"] if manifest["base"] else "",
    }


def read_scores(uri: str) -> Scores:
    """Read the scores at ``uri`` as they were written: a file, or the prefix that an evaluation wrote to."""
    store, key = _located(uri)
    return Scores.from_json(store.read(key), uri)


def proven_scores(scores: Scores, uri: str) -> Scores:
    """Compute ``scores``, read at ``uri``, again from the measurements beside them (:meth:`Scores.proven`)."""
    return scores.proven(*_measurements(uri))


def _measurements(uri: str) -> tuple[bytes, str]:
    """Read the measurements beside the scores at ``uri``: their bytes, and their place."""
    store = _located(uri)[0]
    where = store.uri_of(MEASUREMENTS)
    if not store.exists(MEASUREMENTS):
        fix = "copy them beside scores.json, or evaluate the bundle again"
        raise InputError("the measurements of these scores are missing, and the gate needs them", value=where, fix=fix)
    return store.read(MEASUREMENTS), where


def _located(uri: str) -> tuple[Store, str]:
    return locate_object(uri) if uri.endswith(".json") else (open_store(uri), SCORES)


def scores_hash(scores: Scores) -> str:
    """Identity of scores in the log."""
    return fingerprint(scores.to_json().decode())
