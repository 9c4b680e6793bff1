"""Scores, and the measurements that they are computed again from before the gate uses them."""

from lookalike.config import fingerprint
from lookalike.errors import InputError
from lookalike.evaluation.measurements import MEASUREMENTS
from lookalike.evaluation.scores import SCORES, Scores
from lookalike.storage import Store, locate_object, open_store


def read_scores(uri: str) -> Scores:
    """Read the scores at ``uri`` as they were written: a file, or the prefix that an evaluation wrote to."""
    store, key = _located(uri)
    return Scores.from_json(store.read(key), uri)


def proven_scores(scores: Scores, uri: str) -> Scores:
    """Compute ``scores``, read at ``uri``, again from the measurements beside them (:meth:`Scores.proven`)."""
    store = _located(uri)[0]
    where = store.uri_of(MEASUREMENTS)
    if not store.exists(MEASUREMENTS):
        raise InputError(
            "the measurements of these scores are missing, and the gate needs them",
            value=where,
            fix="copy them beside scores.json, or evaluate the bundle again",
        )
    return scores.proven(store.read(MEASUREMENTS), where)


def _located(uri: str) -> tuple[Store, str]:
    return locate_object(uri) if uri.endswith(".json") else (open_store(uri), SCORES)


def scores_hash(scores: Scores) -> str:
    """Identity of scores in the log."""
    return fingerprint(scores.to_json().decode())
