"""One instance of an embedder for all metrics of a process that use it, and one memory of what it embedded."""

from lookalike.annotators.embedder import load_embedder, revision_of
from lookalike.evaluation.metrics.base import Settings
from lookalike.evaluation.metrics.likeness import Embeddings
from lookalike.recent import Recent

_LOADED = Recent[Embeddings](2)


def embedder_of(settings: Settings, device: str) -> Embeddings:
    """Return the embedder that ``settings`` name on ``device``: the instance that was used last, or a new one.

    Raises ConfigError as :func:`~lookalike.annotators.embedder.load_embedder` does.
    """
    name = settings.embedder
    key = name, revision_of(name), device  # the files of a folder may change
    return _LOADED.get(key, lambda: Embeddings(load_embedder(name, device), device))
