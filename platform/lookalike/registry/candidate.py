"""A bundle that is to be judged: verified, with its scores, and described for the registry."""

from dataclasses import dataclass

from lookalike.bundles.manifest import MANIFEST, parse_manifest
from lookalike.bundles.transfer import verify_bundle
from lookalike.errors import InputError
from lookalike.evaluation.scores import Scores
from lookalike.registry.evidence import proven_scores, read_scores
from lookalike.registry.ownership import check_ownership
from lookalike.registry.versions import manifest_sha256
from lookalike.storage import open_store


@dataclass(frozen=True)
class Candidate:
    """A bundle to be judged by the gate."""

    model: str
    """Name of the registered model: an identifier, or ``CUSTOMER--SUBJECT``."""
    bundle_uri: str
    """Where the bundle is."""
    scores_uri: str
    """Its ``scores.json``, or the prefix that holds one."""
    run_id: str | None = None
    """The tracker's run that trained it."""


def read_candidate(candidate: Candidate) -> tuple[str, Scores, Scores]:
    """The hash of the candidate's bundle, every file of which is verified, and its scores: as they were written, and by
    their measurements.

    Raises:
        InputError: the bundle is missing or damaged, or the scores are another bundle's or not those of their
            measurements.
    """
    scores = read_scores(candidate.scores_uri)
    try:
        sha256 = verify_bundle(candidate.bundle_uri)
    except InputError as error:
        raise InputError(
            error.what,
            value=error.value,
            fix=f"{error.fix}; check --bundle: if the bundle was moved, name its place with --bundle",
        ) from error
    if scores.bundle.sha256 != sha256:
        raise InputError(
            "the scores are another bundle's",
            value=f"{candidate.scores_uri}: {scores.bundle.uri}",
            fix=f"evaluate {open_store(candidate.bundle_uri).uri} first, and name those scores",
        )
    return sha256, scores, proven_scores(scores, candidate.scores_uri)


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
