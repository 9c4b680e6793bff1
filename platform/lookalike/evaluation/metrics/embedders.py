"""One instance of an embedder for all metrics of a process that use it."""

from weakref import WeakValueDictionary

from lookalike.annotators.base import Embedder
from lookalike.annotators.embedder import load_embedder
from lookalike.evaluation.metrics.base import Settings

_IN_USE: "WeakValueDictionary[tuple[str, str], Embedder]" = WeakValueDictionary()


def embedder_of(settings: Settings, device: str) -> Embedder:
    """Return the embedder that ``settings`` name on ``device``: the instance that another metric holds, or a new one.

    Raises ConfigError as :func:`~lookalike.annotators.embedder.load_embedder` does.
    """
    key = settings.embedder, device
    embedder = _IN_USE.get(key)
    if embedder is None:
        embedder = _IN_USE[key] = load_embedder(*key)
    return embedder
