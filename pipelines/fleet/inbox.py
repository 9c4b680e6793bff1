"""The folder of requests as a fleet sees it: what waits, without reading what is done."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from lookalike.storage import ObjectInfo, Store
from pipelines.fleet.records import DONE, FAILED, done_key, failure_of, tag_of
from pipelines.fleet.requests import Refused, Request, read_request

log = logging.getLogger(__name__)

_EXTENSIONS = (".yaml", ".yml", ".json")
_AT_ONCE = 16  # reads of files
_MOST_READ = 1_000  # files in one look
_MOST_WAITING = 50_000  # requests in memory, of about 1 kB each
_SHARE = 0.05  # of the time for lists of a large folder


class Inbox:
    """The requests that wait.

    A look lists the folder once. It reads files that it has not read yet, the newest 1,000 first: so a
    customer's million files do not delay requests that are written later. Looks take 5 % of the time at most, whatever
    the size of the folder; finished requests may be moved away at any time.
    """

    def __init__(self, folder: Store, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Look at most every ``every_s`` seconds."""
        self._folder, self._every_s, self._clock = folder, every_s, clock
        self._next_look = clock()
        self._seen: dict[str, str] = {}  # the tag of each file that was read and is over, by its name
        self._waiting: dict[str, Request] = {}
        self._failed: set[str] = set()  # names with a record
        self.earlier = 0
        """Requests that were done before, when the folder was last looked at."""
        self.unread = 0
        """Files that were not read yet."""

    @property
    def waiting(self) -> list[Request]:
        """The requests that were read and have not been taken."""
        return list(self._waiting.values())

    def take(self, request: Request) -> None:
        """Remove a request that begins, or is over."""
        self._waiting.pop(request.ticket.name, None)
        self._seen[request.ticket.name] = request.tag

    def put_back(self, request: Request) -> None:
        """Let a request wait again."""
        self._waiting[request.ticket.name] = request

    def look(self, now: bool = False) -> list[Refused]:
        """Look for new files, if it is time or ``now``; return those that are not requests."""
        began = self._clock()
        if began < self._next_look and not now:
            return []
        new = self._new_files()
        room = max(0, _MOST_WAITING - len(self._waiting))
        read = sorted(new, key=lambda each: each[1].modified, reverse=True)[: min(_MOST_READ, room)]
        self.unread = len(new) - len(read)
        if self.unread:
            log.info("%d requests wait, and %d files are not read yet", len(self._waiting) + len(read), self.unread)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = list(pool.map(lambda each: self._read(*each), read))
        refused = [each for each in found if isinstance(each, Refused)]
        self._waiting |= {each.ticket.name: each for each in found if isinstance(each, Request)}
        ended = self._clock()
        self._next_look = ended + max(self._every_s, (ended - began) / _SHARE)
        return refused

    def _new_files(self) -> list[tuple[str, ObjectInfo]]:
        """The files directly in the folder that are neither done, nor read, nor waiting; of one name the first."""
        files: dict[str, ObjectInfo] = {}
        records: set[str] = set()
        for info in self._folder.list():
            path = PurePosixPath(info.key)
            if len(path.parts) == 1 and path.suffix.lower() in _EXTENSIONS and not path.name.startswith("."):
                files.setdefault(path.stem, info)
            elif path.parts[0] in (DONE, FAILED):
                records.add(info.key)
        self._failed = {PurePosixPath(key).stem for key in records if key.startswith(f"{FAILED}/")}
        tags = {name: tag_of(info.etag) for name, info in files.items()}
        for name, request in list(self._waiting.items()):
            if tags.get(name) != request.tag:  # changed, or taken back
                del self._waiting[name]
        done = {name for name, tag in tags.items() if done_key(name, tag) in records}
        self.earlier = len(done - self._seen.keys())
        over = done | {name for name, tag in tags.items() if self._seen.get(name) == tag} | self._waiting.keys()
        return [(name, info) for name, info in files.items() if name not in over]

    def _read(self, name: str, info: ObjectInfo) -> Request | Refused | None:
        """Read a file; None for one that failed before, or has been removed meanwhile."""
        if not self._folder.exists(info.key):
            return None
        read = read_request(self._folder, info, name)
        failed_before = name in self._failed and failure_of(self._folder, name).get("request_sha256") == read.sha256
        if failed_before or isinstance(read, Refused):
            self._seen[name] = tag_of(info.etag)
        return None if failed_before else read
