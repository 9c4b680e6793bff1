"""Every member of a tar is part of a sample or is passed over with a reason, and all are counted."""

import io
import tarfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.data.archive import read_entries
from lookalike.data.formats import archive_kind
from lookalike.data.passed_over import EXAMPLES, PassedOver
from lookalike.data.shards import BrokenTarError, iter_samples

Header = tuple[str, bytes, str | bytes]  # name, type, link target or bytes


def tar_of(headers: Sequence[Header], **options: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, kind, what in headers:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(what, bytes):
                info.size = len(what)
            else:
                info.linkname = what
            tar.addfile(info, io.BytesIO(what) if isinstance(what, bytes) else None)
    return buffer.getvalue()


def file(name: str, data: bytes = b"bytes") -> Header:
    return name, tarfile.REGTYPE, data


def hard(name: str, target: str) -> Header:
    return name, tarfile.LNKTYPE, target


def soft(name: str, target: str) -> Header:
    return name, tarfile.SYMTYPE, target


def read(data: bytes) -> tuple[dict[str, bytes], PassedOver]:
    """Bytes by member name, and the tally."""
    tally = PassedOver()
    samples = list(iter_samples(io.BytesIO(data), tally))
    members = {f"{sample.key}.{name}": payload[name] for sample, payload in samples for name in sample.members}
    assert tally.read == sum(len(sample.members) for sample, _ in samples)
    return members, tally


@pytest.mark.parametrize("padding", [0, 512, 10240, 3 << 20])
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_concatenated_tars_are_read_to_the_end(padding: int, format: int) -> None:
    long = "folder/" + "n" * 150
    first = tar_of([file("a.jpg", b"1"), file("a.json")], format=format)
    second = tar_of([file(f"{long}.jpg", b"2"), file("b.txt")], format=format)
    members, tally = read(first + bytes(padding) + second + bytes(padding) + first)
    assert (members["a.jpg"], members[f"{long}.jpg"], members["b.txt"]) == (b"1", b"2", b"bytes")
    assert (tally.found, tally.counts.total()) == (6, 0)


def test_zero_blocks_between_members_do_not_end_the_tar() -> None:
    one = tar_of([file("a.jpg")])[: 2 * 512]
    assert set(read(bytes(512) + one + bytes(512) + tar_of([file("b.jpg")]))[0]) == {"a.jpg", "b.jpg"}


def test_garbage_after_an_end_mark_is_a_truncation() -> None:
    data = tar_of([file("a.jpg"), file("a.json")])
    samples = iter_samples(io.BytesIO(data + b"<html>" * 100))
    assert next(samples)[0].key == "a"
    with pytest.raises(BrokenTarError, match="not a tar"):
        next(samples)


LINKS: list[tuple[str, list[Header], str, bytes | str]] = [
    ("a hard link", [file("a.jpg", b"A"), hard("b.jpg", "a.jpg")], "b.jpg", b"A"),
    ("a hard link of GNU tar", [file("./a.jpg", b"A"), hard("./b.jpg", "./a.jpg")], "./b.jpg", b"A"),
    ("a symbolic link", [file("a.jpg", b"A"), soft("b.jpg", "a.jpg")], "b.jpg", b"A"),
    ("one that is read before its target", [soft("b.jpg", "a.jpg"), file("a.jpg", b"A")], "b.jpg", b"A"),
    ("one into another folder", [file("x/a.jpg", b"A"), soft("y/b.jpg", "../x/a.jpg")], "y/b.jpg", b"A"),
    ("a chain", [file("a.jpg", b"A"), soft("b.jpg", "a.jpg"), soft("c.jpg", "./b.jpg")], "c.jpg", b"A"),
    ("through a linked folder", [file("x/a.jpg", b"A"), soft("y", "x"), soft("b.jpg", "y/a.jpg")], "b.jpg", b"A"),
    ("an absolute name", [file("/d/a.jpg", b"A"), soft("/d/b.jpg", "/d/a.jpg")], "/d/b.jpg", b"A"),
    ("to a member without an extension", [file("blob", b"A"), hard("b.jpg", "blob")], "b.jpg", b"A"),
    ("a sidecar", [file("a.txt", b"A"), hard("b.txt", "a.txt")], "b.txt", b"A"),
    ("out of the tar", [soft("b.jpg", "../../etc/passwd")], "b.jpg", "link_outside"),
    ("to an absolute path", [soft("b.jpg", "/etc/passwd.jpg")], "b.jpg", "link_outside"),
    ("a hard link out of the tar", [hard("b.jpg", "../b.jpg")], "b.jpg", "link_outside"),
    ("to nothing", [soft("b.jpg", "gone.jpg")], "b.jpg", "link_to_nothing"),
    ("to a folder", [("x", tarfile.DIRTYPE, ""), soft("b.jpg", "x")], "b.jpg", "link_to_folder"),
    ("to a pipe", [("x", tarfile.FIFOTYPE, ""), soft("b.jpg", "x")], "b.jpg", "link_to_nothing"),
    ("to itself", [soft("b.jpg", "b.jpg")], "b.jpg", "link_loop"),
    ("a circle", [soft("b.jpg", "c.jpg"), soft("c.jpg", "b.jpg")], "b.jpg", "link_loop"),
    ("a circle of folders", [soft("x", "y"), soft("y", "x"), soft("b.jpg", "x/a.jpg")], "b.jpg", "link_loop"),
    ("its own name again", [file("a.jpg"), hard("a.jpg", "a.jpg")], "a.jpg", "repeated_link"),
    ("the same link twice", [file("a.jpg"), hard("b.jpg", "a.jpg"), hard("b.jpg", "a.jpg")], "b.jpg", "repeated_link"),
]  # fmt: skip


@pytest.mark.parametrize(("headers", "name", "right"), [case[1:] for case in LINKS], ids=[case[0] for case in LINKS])
def test_link_gives_the_bytes_of_its_member_or_a_reason(headers: list[Header], name: str, right: bytes | str) -> None:
    members, tally = read(tar_of(headers))
    assert tally.found == len(headers)
    if isinstance(right, bytes):
        assert members[name] == right
        assert next(e.member for e in read_entries(io.BytesIO(tar_of(headers))) if e.name == name).linked  # type: ignore[union-attr]
    else:
        assert name in tally.examples[right]


def test_link_names_the_last_member_of_that_name_before_it() -> None:
    one = tar_of([file("a.jpg", b"1"), hard("b.jpg", "a.jpg")])
    other = tar_of([file("a.jpg", b"2"), hard("c.jpg", "a.jpg")])
    members, _ = read(one + other)
    assert (members["b.jpg"], members["c.jpg"]) == (b"1", b"2")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (("x", tarfile.DIRTYPE, ""), "folder"),
        (("x.jpg", tarfile.FIFOTYPE, ""), "special_file"),
        (("x.jpg", tarfile.CHRTYPE, ""), "special_file"),
        (("x.jpg", tarfile.BLKTYPE, ""), "special_file"),
        (file("no_extension"), "no_extension"),
        (file("__meta__/x.json"), "webdataset_meta"),
        (file("__index__"), "webdataset_meta"),
        (file(".DS_Store"), "hidden_file"),
        (file("._x.jpg"), "hidden_file"),
    ],
)
def test_member_outside_samples_is_passed_over_with_a_reason(header: Header, reason: str) -> None:
    _, tally = read(tar_of([file("a.jpg"), header, file("b.jpg")]))
    assert (tally.counts, tally.examples) == (Counter({reason: 1}), {reason: [header[0]]})
    assert tally.found == 3


def test_sparse_file_is_passed_over() -> None:
    info = tarfile.TarInfo("x.jpg")
    info.pax_headers = {"GNU.sparse.map": "0,4", "GNU.sparse.size": "4096", "GNU.sparse.realsize": "4096"}
    info.size = 4
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"data"))
    data = buffer.getvalue()
    assert read(data + tar_of([file("b.jpg")]))[1].counts == Counter(sparse_file=1)


_NAMES = st.sampled_from(["a.jpg", "b.jpg", "d/a.jpg", "d/b.json", "__m__", "plain", ".hidden.jpg", "d"])
_HEADERS = st.lists(
    st.one_of(
        st.builds(file, _NAMES, st.binary(max_size=1200)),
        st.builds(hard, _NAMES, _NAMES),
        st.builds(soft, _NAMES, st.sampled_from(["a.jpg", "../a.jpg", "d/a.jpg", "d", "../../x", "/x", "b.jpg"])),
        st.builds(lambda name, kind: (name, kind, ""), _NAMES, st.sampled_from([tarfile.DIRTYPE, tarfile.FIFOTYPE])),
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=150)
@given(st.lists(_HEADERS, min_size=1, max_size=3), st.integers(0, 3))
def test_counts_of_read_and_passed_over_members_add_up(tars: list[list[Header]], padding: int) -> None:
    data = bytes(512 * padding).join(tar_of(headers) for headers in tars)
    tally = PassedOver()
    samples = list(iter_samples(io.BytesIO(data), tally))
    assert tally.found == sum(len(headers) for headers in tars)
    assert tally.found == sum(len(sample.members) for sample, _ in samples) + tally.counts.total()
    for sample, payload in samples:
        for name, member in sample.members.items():
            assert data[member.offset : member.offset + member.length] == payload[name]
    # rows are told apart by their key and place, also where links share a place
    places = Counter((sample.key, name, m) for sample, _ in samples for name, m in sample.members.items() if m.length)
    assert max(places.values(), default=1) == 1


@settings(deadline=None, max_examples=100)
@given(st.binary(min_size=1, max_size=40), st.integers(min_value=0))
def test_damaged_tar_gives_samples_or_a_broken_tar_error(noise: bytes, place: int) -> None:
    data = bytearray(
        tar_of([file("a.jpg"), soft("b.jpg", "a.jpg"), file("c" * 120 + ".jpg")], format=tarfile.PAX_FORMAT)
    )
    place %= len(data)
    data[place : place + len(noise)] = noise
    with suppress(BrokenTarError):
        list(iter_samples(io.BytesIO(bytes(data))))


@pytest.mark.parametrize(
    ("head", "kind"), [(b"PK\3\4", "zip"), (b"7z\xbc\xaf\x27\x1c", "7z"), (b"\x1f\x8b\x08", "gzip")]
)
def test_other_archive_formats_are_named(head: bytes, kind: str) -> None:
    assert archive_kind(head) == kind
    with pytest.raises(BrokenTarError, match=f"the file is a {kind} archive, not a tar"):
        list(iter_samples(io.BytesIO(head + bytes(2000))))
    assert archive_kind(tar_of([file("PK\3\4.jpg"), file("BZh9.jpg")])) is None


def test_passed_over_is_bounded_and_adds_up() -> None:
    total = PassedOver()
    for part in range(20):
        own = PassedOver(found=100)
        for i in range(50):
            own.add("folder", f"{part}-{i}" + "x" * 5000 + "\udcff")
        total.merge(own)
    values = total.to_json()
    assert (values["found"], values["read"], values["reasons"]["folder"]["count"]) == (2000, 1000, 1000)
    assert len(values["reasons"]["folder"]["examples"]) == EXAMPLES
    assert len(str(values).encode()) < 5000
    assert PassedOver.from_json(values) == total
