"""Connected components of a graph of pairs."""

import numpy as np


def components(heads: np.ndarray, tails: np.ndarray, size: int) -> np.ndarray:
    """Return the component of each of ``size`` nodes, int [size]; pair i joins ``heads[i]`` and ``tails[i]``."""
    from scipy.sparse import coo_array  # imported here, since most processes never need it
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(heads), bool), (heads, tails)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    return np.asarray(component)
