"""Where the links of a folder may lead: within it, and into the places that an operator names."""

import os

LINK_ROOTS = "LOOKALIKE_LINK_ROOTS"
"""Environment variable: folders, separated by ``:``, into which links may lead out of a store. None by default: a link
that somebody else has put into a store would make any file of this machine an input, or an output."""


def stays_within(root: str, path: str) -> bool:
    """Whether ``path``, all links resolved, lies in ``root`` or in a folder of :data:`LINK_ROOTS`; both are real paths
    (:func:`os.path.realpath`)."""
    if _holds(root, path):
        return True
    named = os.environ.get(LINK_ROOTS, "").split(os.pathsep)
    return any(_holds(os.path.realpath(place), path) for place in named if place)


def _holds(folder: str, path: str) -> bool:
    return os.path.commonpath([folder, path]) == folder
