"""What changes state of the whole process for a moment, and therefore runs in one thread at a time.

transformers and diffusers replace functions of ``torch.nn`` while they build a model (``no_init_weights``,
``init_empty_weights``) and set torch's default dtype; jsonargparse changes its parsers while it reads a configuration.
A module that another thread builds meanwhile may stay on the meta device or keep values that nothing initialised.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def alone_in_process() -> Iterator[None]:
    """Keep other threads out of what is marked so, as a decorator or in a ``with``; may be nested."""
    with _LOCK:
        yield
