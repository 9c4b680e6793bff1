"""A store's ``uri`` and ``open_store``, an object's ``uri_of`` and ``locate_object`` are exact inverses."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lookalike.errors import ConfigError, InputError
from lookalike.storage import Store, locate_object, open_store, overlap
from lookalike.storage.local import LocalStore
from lookalike.storage.s3 import S3Store

# What a POSIX file system allows as a name: any bytes but NUL and the slash, and not "." or "..".
_NAME = (
    st.binary(min_size=1, max_size=40)
    .map(lambda data: data.replace(b"\0", b"#").replace(b"/", b"?"))
    .filter(lambda data: data not in (b".", b".."))
    .map(os.fsdecode)
)
_MARKS = st.text("#?%&=+:;@~!*[]{}\\ .\n\t'\"41aAü", min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
_FILE = st.one_of(_NAME, _MARKS)
# What S3 allows as a key: any UTF-8. Segments "." and ".." are refused by name.
_KEY = st.one_of(st.text(max_size=30), st.text("#?%/&=+: .\n{}a", max_size=12))
MARKED = ["my #1 store", "what?", "50%20off", "100%", "a b ü", "c:d", "%41", "{a,b}", "*[x]", "~", "a\\b", " x ", "x."]


@settings(max_examples=400, deadline=None)
@given(st.lists(_FILE, min_size=1, max_size=4))
def test_uri_of_a_folder_opens_that_folder(names: list[str]) -> None:
    root = Path("/" + "/".join(names))
    for store in (LocalStore(root), LocalStore(Path("/")).child("/".join(names))):
        assert store.root == root
        assert open_store(store.uri) == store
        store.uri.encode("ascii")  # can be stored and shown anywhere
    assert open_store(str(root)) == LocalStore(root)  # plain paths are literal
    store, key = locate_object(LocalStore(root).uri_of("x/" + names[0]))
    assert store == LocalStore(root / "x")
    assert key == names[0]
    assert locate_object(str(root)) == (LocalStore(root.parent), root.name)


@settings(max_examples=400, deadline=None)
@given(_KEY, st.one_of(st.text(min_size=1, max_size=9), st.sampled_from(MARKED)))
@example("r#1", "x")
@example("/leading", "x")
@example("a//b", "x")
@example("a/", "x")
@example("//", "x")
@example("", "x")
def test_uri_of_an_s3_prefix_opens_that_prefix(prefix: str, name: str) -> None:
    if {".", ".."} & set(prefix.split("/")):
        with pytest.raises(ConfigError, match="segment"):
            open_store(f"s3://bucket/{prefix}")
        return
    store = S3Store("bucket", prefix)
    assert open_store(store.uri) == store
    assert open_store(f"s3://bucket/{prefix}") == store
    assert pickle.loads(pickle.dumps(store)) == store
    if store.prefix:
        assert store.parent.prefix + store.prefix[len(store.parent.prefix) :] == store.prefix
        assert store.prefix_in(store.parent) == store.prefix[len(store.parent.prefix) :]
    if "/" not in name and name not in (".", ".."):
        assert store.uri_of(name) == f"s3://bucket/{store.prefix}{name}"
        found, key = locate_object(store.uri_of(name))
        assert found == store
        assert key == name


@pytest.mark.parametrize("name", MARKED)
def test_objects_are_written_into_the_named_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    store = open_store(str(folder)).child("a #1")
    again = open_store(open_store(store.uri).uri)
    again.write(f"k {name}", b"data")
    assert (folder / "a #1" / f"k {name}").read_bytes() == b"data"
    assert [info.key for info in store.list()] == [f"k {name}"]
    found, key = locate_object(store.uri_of(f"k {name}"))
    assert found.read(key) == b"data"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("file:///a b/x#1?v=2", "/a b/x#1?v=2"),  # as in records of earlier software
        ("file:///a%20b/%23", "/a b/#"),
        ("file:///100%/x", "/100%/x"),
        ("file:///a%FF", os.fsdecode(b"/a\xff")),
        ("FILE:///a", "/a"),
        ("file:/a", "/a"),
        ("file://localhost/a", "/a"),
        ("//a//b/./c/", "/a/b/c"),
        ("file:////a", "/a"),
        ("/nowhere/x/../y", "/nowhere/y"),
        ("~/x", str(Path.home() / "x")),
        ("/x/~", "/x/~"),
        ("/a%20b?#", "/a%20b?#"),
    ],
)
def test_location_is_parsed_as_documented(written: str, path: str) -> None:
    assert open_store(written) == LocalStore(Path(path))


def test_relative_paths_start_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for written, name in {"x": "x", "./x": "x", "y/../x": "x", "./~": "~", "c:d": "c:d", "100%": "100%"}.items():
        assert open_store(written).uri == (tmp_path / name).as_uri()
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/deep")
    assert open_store("link/../x").uri == (tmp_path / "real" / "x").as_uri()  # as the file system resolves it


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("", "empty"),
        ("file://host/x", "host.*file:///host/x"),
        ("file://data", "host"),
        ("file:x", "no absolute path"),
        ("file://", "no absolute path"),
        ("C:\\x", "Windows"),
        ("C:/x", "Windows"),
        ("gs://bucket/x", "gs://"),
        ("https://host/x", "https://"),
        ("s3://", "bucket"),
        ("s3:/bucket/x", "bucket"),
        ("s3:bucket", "bucket"),
        ("S3:///x", "bucket"),
        ("s3://user:pw@host/x", "bucket"),  # pragma: allowlist secret
        ("s3://b/../c", "segment"),
        ("s3://b/a/./c", "segment"),
        ("s3://b/\udcff", "UTF-8"),
        ("a\0b", "NUL"),
        ("file:///a%00", "NUL"),
        ("\ud800", "surrogates"),
        ("file:///\ud800", "surrogates"),
        ("~no-such-user-here/x", "user"),
    ],
)
def test_invalid_location_is_refused(written: str, words: str) -> None:
    for opened in (open_store, locate_object):
        with pytest.raises(ConfigError, match=words):
            opened(written)


@pytest.mark.parametrize("written", ["/a/", "s3://b/", "s3://b/x/", "/", "file:///a/", "s3://b", "/a/.", "x/.."])
def test_location_of_a_folder_is_not_an_object(written: str) -> None:
    with pytest.raises(ConfigError, match="not a"):
        locate_object(written)


def test_s3_locations_have_one_spelling() -> None:
    for written, uri in [
        ("S3://b/x", "s3://b/x"),
        ("s3://b/x/", "s3://b/x"),
        ("s3://b/", "s3://b"),
        ("s3://b//", "s3://b//"),
        ("s3://b/x//", "s3://b/x//"),
        ("s3://b/%20#?", "s3://b/%20#?"),
    ]:
        assert open_store(written).uri == uri


@pytest.mark.parametrize("key", ["a//b", "./a", "a/.", "a\0"])
def test_different_keys_name_different_objects(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        open_store(str(tmp_path)).write(key, b"")


def test_nested_prefixes_overlap(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "raw")
    inside = [("raw", "raw/x"), ("raw", "raw"), ("raw/x", "raw"), ("raw", "link/x")]
    apart = [("raw", "raw2"), ("raw", "raw#"), ("a b", "a")]
    for pairs, expected in ((inside, True), (apart, False)):
        for one, other in pairs:
            assert overlap(open_store(str(tmp_path / one)), open_store(str(tmp_path / other))) is expected
    assert overlap(open_store("s3://b"), open_store("s3://b/x"))
    assert not overlap(open_store("s3://b/r"), open_store("s3://b/r#1"))
    assert not overlap(open_store("s3://b/x"), open_store("s3://c/x"))


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.exists("x" * 300),
        lambda store: store.read("x" * 300),
        lambda store: store.write("x" * 300, b""),
        lambda store: store.delete("x" * 300),
        lambda store: store.read("loop"),
        lambda store: store.write("file/x", b""),
        lambda store: store.delete("folder"),
        lambda store: store.read("folder"),
    ],
)
def test_errors_of_the_file_system_become_input_errors(call: Callable[[Store], object], tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=tmp_path.as_uri()):
        call(open_store(str(tmp_path)))
