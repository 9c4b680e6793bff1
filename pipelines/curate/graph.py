"""Connected components of a graph of pairs."""

import numpy as np


def components(heads: np.ndarray, tails: np.ndarray, size: int) -> np.ndarray:
    """The number of the component of each of ``size`` nodes, int [size]; pair i joins ``heads[i]`` and ``tails[i]``."""
    from scipy.sparse import coo_array  # here: most processes of a curation never need it
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(heads), bool), (heads, tails)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    return np.asarray(component)
