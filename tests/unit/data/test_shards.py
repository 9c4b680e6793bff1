import io
import pickle
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.data.shards import (
    BrokenTarError,
    Member,
    Sample,
    iter_samples,
    open_object,
    split_name,
    write_tar,
)
from lookalike.errors import InputError
from lookalike.storage import Store, open_store

SAMPLES = [(f"photo{i:02d}", {"jpg": bytes([i]) * (700 + 300 * i), "json": b'{"n": %d}' % i}) for i in range(12)]


def tar_of(samples: list[tuple[str, dict[str, bytes]]]) -> bytes:
    buffer = io.BytesIO()
    write_tar(buffer, samples)
    return buffer.getvalue()


def read(data: bytes) -> tuple[list[Sample], BrokenTarError | None]:
    """The complete samples of a tar, and the error if it is truncated."""
    samples: list[Sample] = []
    try:
        samples.extend(sample for sample, _ in iter_samples(io.BytesIO(data)))
    except BrokenTarError as error:
        return samples, error
    return samples, None


def plain_tar(members: list[tuple[str, bytes]], **options: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_equal_samples_give_equal_bytes_and_places(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    written = write_tar(path, SAMPLES)
    data = path.read_bytes()
    assert data == tar_of(SAMPLES)
    assert read(data) == (written, None)
    for sample, (key, payload) in zip(written, SAMPLES, strict=True):
        assert sample.key == key
        for extension, member in sample.members.items():
            assert data[member.offset : member.offset + member.length] == payload[extension]


@pytest.mark.parametrize("name", ["schäre", "x" * 180, "folder/key"])
def test_long_and_foreign_names(name: str) -> None:
    data = tar_of([(name, {"jpg": b"abc"})])
    (sample,), error = read(data)
    member = sample.members["jpg"]
    assert (sample.key, error) == (name, None)
    assert data[member.offset : member.offset + 3] == b"abc"


@pytest.mark.parametrize("key", ["a.b", "__meta__/a", ""])
def test_keys_that_readers_would_group_differently_are_refused(key: str) -> None:
    with pytest.raises(InputError, match="another sample"):
        tar_of([(key, {"jpg": b""})])


def test_repeated_key_is_refused() -> None:
    with pytest.raises(InputError, match=r"same key \('a'\)"):
        tar_of([("a", {"jpg": b""}), ("a", {"jpg": b""})])


def test_webdataset_reads_the_same_samples(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    write_tar(path, SAMPLES)
    read = [
        (sample["__key__"], {"jpg": sample["jpg"], "json": sample["json"]})
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
    ]
    assert read == SAMPLES


def test_grouping_is_that_of_webdataset(tmp_path: Path) -> None:
    names = [
        "a.jpg", "a.json", "dir/a.JPG", "dir/a.txt", "../b.jpg", "b.ref0.jpg", "b.target.jpg", "no_extension",
        "__skipped__", "__also__/x.jpg", ".hidden", "c.d/e.jpg", "c.jpg",
    ]  # fmt: skip
    path = tmp_path / "shard.tar"
    path.write_bytes(plain_tar([(name, name.encode()) for name in names]))
    theirs = [
        (sample["__key__"], [name for name in sample if not name.startswith("__")])
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
    ]
    ours = [(sample.key, list(sample.members)) for sample in read(path.read_bytes())[0]]
    assert ours == theirs
    assert len(ours) == 6


def test_repeated_extension_begins_a_new_sample() -> None:
    data = plain_tar([("a.jpg", b"1"), ("a.json", b"{}"), ("a.jpg", b"2"), ("a.json", b"{}")])
    samples = [(sample.key, payload["jpg"]) for sample, payload in iter_samples(io.BytesIO(data))]
    assert samples == [("a", b"1"), ("a", b"2")]


@settings(deadline=None)
@given(st.integers(min_value=0))
def test_samples_before_a_truncation_are_read_and_incomplete_ones_named(cut: int) -> None:
    data = tar_of(SAMPLES)
    whole = read(data)[0]
    end = whole[-1].members["json"]
    end_mark = -(-(end.offset + end.length) // 512) * 512
    cut %= end_mark + 1  # at most up to the end mark, which is missing then
    samples, error = read(data[:cut])
    assert error is not None
    assert samples == whole[: len(samples)]
    rest = whole[len(samples) :]
    if rest and cut > rest[0].members["jpg"].offset:
        assert error.lost_keys == (rest[0].key,)
    else:
        assert set(error.lost_keys) <= {sample.key for sample in rest[:1]}


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "empty"), (b"<html>404</html>" * 100, ""), (tar_of(SAMPLES)[:-10240] + b"x" * 9000, "")],
)
def test_file_that_is_not_a_tar_is_a_broken_tar(data: bytes, message: str) -> None:
    with pytest.raises(BrokenTarError, match=f"breaks off.*{message}"):
        list(iter_samples(io.BytesIO(data[:5000])))


def test_empty_tar_is_not_an_error() -> None:
    assert read(tar_of([])) == ([], None)


def test_broken_tar_error_can_be_pickled() -> None:
    with pytest.raises(BrokenTarError) as caught:
        list(iter_samples(io.BytesIO(tar_of(SAMPLES)[:900])))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), copy.lost_keys, str(copy)) == (BrokenTarError, ("photo00",), str(caught.value))


class _Counting:
    """A store that counts the bytes read of it."""

    def __init__(self, store: Store) -> None:
        self._store, self.read = store, 0

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        self.read += length
        return self._store.read_range(key, offset, length)


def test_object_is_read_by_range(tmp_path: Path) -> None:
    write_tar(tmp_path / "shard.tar", [(f"k{i}", {"jpg": bytes(5 << 20), "json": b"{}"}) for i in range(3)])
    store = open_store(str(tmp_path))
    (info,) = store.list()
    counting = _Counting(store)
    samples = [sample for sample, _ in iter_samples(open_object(counting, info))]  # type: ignore[arg-type]
    assert [sample.members["jpg"].length for sample in samples] == [5 << 20] * 3
    assert counting.read < 1.5 * info.size
    file = open_object(store, info)
    file.seek(-2, io.SEEK_END)
    assert file.read() == b"\0\0"


def test_names_split_at_the_first_dot() -> None:
    assert split_name("folder.d/key.ref0.JPG") == ("folder.d/key", "ref0.jpg")
    assert split_name("key") is None
    assert Member(0, 1) == Member(offset=0, length=1)
