"""One contract for both stores; S3 is a real SeaweedFS."""

import hashlib
import multiprocessing
import os
import pickle
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from aiohttp import web
from botocore.exceptions import IncompleteReadError

from lookalike.errors import ConfigError, ConflictError, InputError, UnreachableError
from lookalike.storage import Store, open_store
from lookalike.storage.local import LocalStore
from lookalike.storage.s3 import S3Store
from lookalike.storage.store import sha256_of, upload_tree
from tests.faulty_s3 import FaultyProxy, serve_in_thread


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    uri = str(tmp_path / "store") if request.param == "file" else request.getfixturevalue("s3_uri")
    return open_store(uri)


def test_an_object_comes_back_whole_or_by_range(store: Store) -> None:
    store.write("a/b.bin", bytes(range(256)))
    assert store.read("a/b.bin") == bytes(range(256))
    assert store.read_range("a/b.bin", 10, 3) == bytes([10, 11, 12])
    assert store.read_range("a/b.bin", 255, 1) == b"\xff"
    assert store.read_range("a/b.bin", 7, 0) == b""
    store.write("a/b.bin", b"new")
    assert store.read("a/b.bin") == b"new"


@pytest.mark.parametrize("span", [(0, 4), (2, 2), (3, 1), (100, 1)])
def test_a_range_beyond_the_end_is_an_error(store: Store, span: tuple[int, int]) -> None:
    store.write("short", b"abc")
    with pytest.raises(InputError, match="shorter"):
        store.read_range("short", *span)


def test_listings_are_sorted_by_key_and_know_their_prefix(store: Store) -> None:
    keys = ["a-b", "a.txt", "a/b", "a/b-c", "a/c/d", "ab", "b", "Z", "ä"]
    for key in keys:
        store.write(key, key.encode())
    assert [info.key for info in store.list()] == sorted(keys)
    assert [info.key for info in store.list("a")] == [key for key in sorted(keys) if key.startswith("a")]
    assert [info.key for info in store.list("a/")] == ["a/b", "a/b-c", "a/c/d"]
    assert [info.key for info in store.list("a/b")] == ["a/b", "a/b-c"]
    assert [info.key for info in store.child("a").list()] == ["b", "b-c", "c/d"]
    assert [info.key for info in store.list("nothing")] == []
    assert {info.key: info.size for info in store.list()}["a/b-c"] == 5


def test_a_long_listing_is_complete(store: Store) -> None:
    keys = [f"k{number:05d}" for number in range(1100)]  # S3 pages hold 1000
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.write(key, b""), keys))
    assert [info.key for info in store.list()] == keys


def test_a_tag_changes_with_the_content(store: Store) -> None:
    def tag() -> str:
        return next(iter(store.list())).etag

    store.write("x", b"one")
    before = tag()
    assert tag() == before
    store.write("x", b"two")
    assert tag() != before


def test_what_is_not_there(store: Store) -> None:
    store.write("folder/object", b"")
    assert not store.exists("folder")
    assert store.exists("folder/object")
    for read in (
        lambda: store.read("missing"),
        lambda: store.read_range("missing", 0, 1),
        lambda: store.read("folder"),
    ):
        with pytest.raises(InputError, match="no such object"):
            read()
    with pytest.raises(InputError, match="no such object"):
        store.download("missing", Path("/nonexistent/target"))
    store.delete("missing")
    store.delete("folder/object")
    assert not store.exists("folder/object")


def test_create_writes_once(store: Store) -> None:
    store.create("marker", b"first")
    for data in (b"second", b"first"):
        with pytest.raises(ConflictError, match="exists already"):
            store.create("marker", data)
    assert store.read("marker") == b"first"


def test_one_of_many_creators_wins(store: Store) -> None:
    won, lost, start = [], [], threading.Barrier(8)

    def publish(number: int) -> None:
        start.wait()
        try:
            store.create("race", b"%d" % number)
            won.append(number)
        except ConflictError:
            lost.append(number)

    threads = [threading.Thread(target=publish, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 7
    assert store.read("race") == b"%d" % won[0]


def test_files_and_trees_are_copied(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "big.bin").write_bytes(os.urandom(9 << 20))  # above boto3's multipart threshold
    (source / "small.txt").write_text("small")
    upload_tree(source, store)
    assert [info.key for info in store.list()] == ["deep/big.bin", "small.txt"]
    store.download("deep/big.bin", tmp_path / "new" / "copy.bin")
    assert (tmp_path / "new" / "copy.bin").read_bytes() == (source / "deep" / "big.bin").read_bytes()
    assert store.read("small.txt") == b"small"
    for key, size in (("deep/big.bin", 9 << 20), ("small.txt", 5)):
        assert sha256_of(store, key, size) == hashlib.sha256((source / key).read_bytes()).hexdigest()


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", ".."])
def test_no_key_leaves_its_store(store: Store, key: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.read(key),
        lambda: store.write(key, b""),
        lambda: store.child(key.lstrip("/") if key != "/etc/passwd" else ".."),
        lambda: store.delete(key),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="leaves its store"):
            call()


def test_a_store_travels_between_processes(store: Store) -> None:
    store.write("x", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.uri == store.uri
    assert copy.read("x") == b"1"
    assert store.child("").uri == store.uri
    assert store.child("a/").child("b").uri == f"{store.uri}/a/b"


# -- what goes wrong: S3


def test_a_missing_bucket_is_named(s3_uri: str) -> None:
    store = open_store("s3://no-such-bucket/prefix")
    calls: list[Callable[[], object]] = [
        lambda: store.read("x"),
        lambda: store.exists("x"),
        lambda: list(store.list()),
        lambda: store.write("x", b""),
        lambda: store.create("x", b""),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"the bucket does not exist.*no-such-bucket.*create it at http"):
            call()


def test_a_failed_upload_says_why(s3_uri: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(InputError, match="the bucket does not exist"):
        open_store("s3://no-such-bucket/prefix").upload("x", tmp_path / "file")


def test_a_wrong_secret_is_refused(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(s3_uri).write("x", b"secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_store(s3_uri)
    for call in (lambda: store.read("x"), lambda: store.write("x", b"")):
        with pytest.raises(UnreachableError, match=r"refused.*AWS_ACCESS_KEY_ID"):
            call()


def test_no_credentials_at_all(s3_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(UnreachableError, match="no S3 credentials"):
        open_store(s3_uri).read("x")


def test_an_endpoint_that_is_down_is_named_within_30_s(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    _fails_within_30_s(endpoint)


def test_an_endpoint_that_keeps_silent_is_named_within_30_s(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        _fails_within_30_s(endpoint)


def _fails_within_30_s(endpoint: str) -> None:
    started = time.monotonic()
    with pytest.raises(UnreachableError, match=f"S3 at {endpoint} does not answer"):
        open_store("s3://scratch/x").read("y")
    assert time.monotonic() - started < 30


def test_a_put_whose_answer_was_lost_has_won(s3_uri: str) -> None:
    store = open_store(s3_uri)
    assert isinstance(store, S3Store)

    def lose(**_: object) -> float:
        client.meta.events.unregister("needs-retry.s3.PutObject", lose, unique_id="lose")
        return 0.0  # seconds to wait before botocore sends it again

    client = store._client
    client.meta.events.register_first("needs-retry.s3.PutObject", lose, unique_id="lose")
    store.create("marker", b"mine")
    assert store.read("marker") == b"mine"
    with pytest.raises(ConflictError):
        store.create("marker", b"mine")


def test_a_stream_that_breaks_is_read_again(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def read(self) -> bytes:
            raise IncompleteReadError(actual_bytes=1, expected_bytes=4)

    store = open_store(s3_uri)
    store.write("x", b"whole")
    assert isinstance(store, S3Store)
    get, answers = store._client.get_object, [{"Body": Broken()}, {"Body": Broken()}]
    monkeypatch.setattr(store._client, "get_object", lambda **options: answers.pop() if answers else get(**options))
    assert store.read_range("x", 1, 3) == b"hol"
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    get_again, answers = store._client.get_object, [{"Body": Broken()}] * 3
    monkeypatch.setattr(
        store._client, "get_object", lambda **options: answers.pop() if answers else get_again(**options)
    )
    with pytest.raises(UnreachableError, match=r"S3 at .* failed"):
        store.read("x")


class _OneFault:
    """The next request for an object fails in a given way."""

    def __init__(self) -> None:
        self.next: str | None = None

    def choose(self, request: web.Request) -> str | None:
        fault, self.next = self.next, None
        return fault

    def acted(self, request: web.Request) -> None:
        """Nothing else happens."""


@pytest.mark.parametrize("fault", ["throttled", "reset before", "reset after", "broken off"])
def test_a_request_that_fails_is_made_again(s3_uri: str, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    faults = _OneFault()
    proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"], faults)
    monkeypatch.setenv("AWS_ENDPOINT_URL", serve_in_thread(proxy))
    store = open_store(s3_uri)
    data = os.urandom(1 << 20)
    store.write("there", data)

    def again(request: Callable[[], object]) -> object:
        faults.next = fault
        return request()

    assert again(lambda: store.read("there")) == data
    assert again(lambda: store.read_range("there", 1000, 500_000)) == data[1000:501_000]
    assert again(lambda: [info.key for info in store.list()]) == ["there"]
    assert again(lambda: store.exists("there")) is True
    again(lambda: store.write("written", data))
    again(lambda: store.create("created", data))
    assert store.read("written") == store.read("created") == data
    assert proxy.faults == {fault: 6}


class _RateLimit:
    """Requests beyond a number in a second are answered by 503 SlowDown, as S3 does; it records the connections."""

    def __init__(self, rate: int) -> None:
        self.rate, self.answered, self.connections = rate, list[float](), set[object]()

    def choose(self, request: web.Request) -> str | None:
        assert request.transport is not None
        self.connections.add(request.transport.get_extra_info("peername"))
        now = time.monotonic()
        self.answered = [moment for moment in self.answered if now - moment < 1]
        if len(self.answered) >= self.rate:
            return "throttled"
        self.answered.append(now)
        return None

    def acted(self, request: web.Request) -> None:
        """Nothing else happens."""


def _limited(monkeypatch: pytest.MonkeyPatch, rate: int) -> tuple[_RateLimit, FaultyProxy]:
    limit = _RateLimit(rate)
    proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"], limit)
    monkeypatch.setenv("AWS_ENDPOINT_URL", serve_in_thread(proxy))
    return limit, proxy


def test_requests_of_many_threads_all_succeed_at_a_throttled_server(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proxy = _limited(monkeypatch, 20)
    store = open_store(s3_uri)

    def there_and_back(number: int) -> bool:
        store.write(f"{number}", str(number).encode())
        return store.read(f"{number}") == str(number).encode()

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(there_and_back, range(60)))
    assert proxy.faults["throttled"] >= 5


def test_threads_keep_their_connections(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, _ = _limited(monkeypatch, 10_000)
    store = open_store(s3_uri)
    store.write("x", bytes(1 << 20))
    together = threading.Barrier(16)

    def read(_: int) -> None:
        together.wait(60)
        store.read("x")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(read, range(16 * 8)))
    assert len(limit.connections) <= 18  # of 16 threads, of the first check, and of the write


def test_throttling_without_an_end_is_named_after_the_last_attempt(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, proxy = _limited(monkeypatch, 10_000)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    store = open_store(s3_uri)
    store.write("x", b"data")
    limit.rate = 0
    with pytest.raises(UnreachableError, match=r"still throttles the requests after 3 attempts \(SlowDown\)") as failed:
        store.read("x")
    assert proxy.faults == {"throttled": 3}
    assert "AWS_MAX_ATTEMPTS" in str(failed.value)


@pytest.mark.parametrize("attempts", ["0", "many", "1000", "-1"])
def test_a_number_of_attempts_that_is_none_is_an_error(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch, attempts: str
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", attempts)
    with pytest.raises(ConfigError, match="AWS_MAX_ATTEMPTS"):
        open_store(s3_uri).read("x")


def test_a_listing_knows_when_objects_were_written(store: Store) -> None:
    store.write("x", b"data")
    (info,) = store.list()
    assert abs(info.modified - time.time()) < 60


# -- what goes wrong: files


def _write_to_a_full_disk(uri: str, source: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # writes fail half way, as on a full disk
    store, data = open_store(uri), source.read_bytes()
    writes: list[Callable[[], object]] = [
        lambda: store.write("big", data),
        lambda: store.create("big", data),
        lambda: store.upload("big", source),
        lambda: LocalStore(source.parent).download(source.name, Path(uri) / "big"),
    ]
    for write in writes:
        try:
            write()
        except InputError as error:
            if "cannot write" in str(error) and "big" in str(error) and not list(Path(uri).iterdir()):
                continue
        os._exit(1)
    os._exit(0)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * (2 << 20))
    child = multiprocessing.get_context("fork").Process(
        target=_write_to_a_full_disk, args=[str(tmp_path / "store"), tmp_path / "source"]
    )
    child.start()
    child.join(timeout=60)
    assert child.exitcode == 0


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("a", b"")
    store.write("c/d", b"")
    for call in (lambda: store.write("a/b", b""), lambda: store.create("a/b", b""), lambda: store.write("c", b"")):
        with pytest.raises(InputError, match="cannot write"):
            call()
    with pytest.raises(InputError, match="no such object"):
        store.read("a/b")


def test_half_written_files_are_no_objects(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("a/b", b"")
    (tmp_path / "a" / ".part-killed").write_bytes(b"half")
    assert [info.key for info in store.list()] == ["a/b"]


def test_files_obey_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        open_store(str(tmp_path)).write("a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("uri", ["", "s3:///x", "gs://bucket/x", "http://host/x"])
def test_unknown_locations(uri: str) -> None:
    with pytest.raises(ConfigError):
        open_store(uri)
