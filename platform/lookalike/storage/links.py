"""Which symbolic links are followed: those that stay within the store, or lead into folders that an operator names.

A snapshot in the Hub's cache (``models--ORG--NAME/snapshots/REVISION``, the layout of ``huggingface_hub``) consists of
links into the ``blobs`` folder beside it, which counts as a part of the snapshot.
"""

import os
import re

LINK_ROOTS = "LOOKALIKE_LINK_ROOTS"
"""Environment variable: folders, separated by ``:``, into which links may lead out of a store. Empty by default: a link
that somebody else puts into a store could otherwise make any file of this machine an input or an output."""

_HUB_SNAPSHOT = re.compile(r"(.*/(?:models|datasets|spaces)--[^/]+)/snapshots/[^/]+(?:/|\Z)", re.DOTALL)


def stays_within(root: str, path: str) -> bool:
    """Return whether ``path`` lies in ``root`` or in a folder of :data:`LINK_ROOTS`; both are resolved by
    :func:`os.path.realpath`."""
    if _holds(root, path) or ((hub := _HUB_SNAPSHOT.match(root)) and _holds(f"{hub[1]}/blobs", path)):
        return True
    named = os.environ.get(LINK_ROOTS, "").split(os.pathsep)
    return any(_holds(os.path.realpath(place), path) for place in named if place)


def _holds(folder: str, path: str) -> bool:
    return os.path.commonpath([folder, path]) == folder
