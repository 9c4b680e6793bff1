"""Counts add up from the listing on: objects, members and images are kept, dropped, or passed over by name."""

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lookalike.errors import InputError
from lookalike.storage import ObjectInfo, open_store
from lookalike.storage.local import LocalStore
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.inventory import REASONS, lines
from pipelines.curate.raw import list_raw
from pipelines.curate.work import StageWork
from tests.drawn import Photo, world, write_raw
from tests.published import materialise

Planned = Callable[..., StageWork]
LOOSE = FiltersConfig(no_pair=NoPair(min_similarity=-1.0), skip=["near_duplicate", "off_subject"])


def arrow(codec: str) -> Callable[[bytes], bytes]:
    def compress(data: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]

    return compress


COMPRESS = {
    "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": arrow("zstd"), "lz4": arrow("lz4"),
    "nothing": bytes,
}  # fmt: skip


def tar_of(photos: list[Photo], *extra: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for each in photos:
            key, payload = each.sample()
            for extension, data in payload.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        for info in extra:
            tar.addfile(info)
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def rows_of(work: StageWork) -> list[dict[str, Any]]:
    return [row for i in range(work.partitions) for row in work.read_plan(i, "images").to_pylist()]


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        *((name, "nothing") for name in ("x.tar", "X.TAR", "x.Tar", "x.tar.gz", "x.tzst")),
        *(("x.tar", inside) for inside in COMPRESS if inside != "nothing"),
        *((f"x.tar.{inside}", inside) for inside in COMPRESS if inside != "nothing"),
        *(("x.TGZ", "gz"), ("x.tbz2", "bz2"), ("x.TXZ", "xz"), ("x.tar.bz2", "gz")),
    ],
)
def test_a_shard_is_read_by_its_bytes_and_not_its_name(
    planned: Planned, tmp_path: Path, name: str, inside: str
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / name).write_bytes(COMPRESS[inside](tar_of(world(2, 2))))
    work = planned(tmp_path / "raw", filters=LOOSE)
    rows = rows_of(work)
    assert [row["drop_reason"] for row in rows] == [None] * 4
    assert work.members.to_json() == {"found": 8, "read": 8, "reasons": {}}
    assert all(work.read_image(row) for row in rows)


@pytest.mark.parametrize("codec", [name for name in COMPRESS if name != "nothing"])
def test_a_compressed_stream_that_breaks_off_after_a_complete_tar_is_a_row(
    planned: Planned, tmp_path: Path, codec: str
) -> None:
    one, other = (COMPRESS[codec](tar_of(world(4, 2)[first : first + 4])) for first in (0, 4))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "joined.tar").write_bytes(one + other)
    (tmp_path / "raw" / "torn.tar").write_bytes(one + other[:9])
    rows = rows_of(planned(tmp_path / "raw", filters=LOOSE))
    assert sum(row["shard"] == "joined.tar" for row in rows) == 8
    (torn,) = (row for row in rows if row["shard"] == "torn.tar" and row["cut"] and not row["key"])
    assert "breaks off" in torn["error"]


def test_links_in_a_tar_are_separate_images(planned: Planned, tmp_path: Path) -> None:
    photos = world(2, 2)
    key = photos[0].key
    (tmp_path / "raw").mkdir()
    data = tar_of(photos, link("twin.jpg", f"{key}.jpg", tarfile.LNKTYPE), link("twin.json", f"{key}.json"))
    (tmp_path / "raw" / "x.tar").write_bytes(data)
    work = planned(tmp_path / "raw", filters=LOOSE)
    rows = {row["key"]: row for row in rows_of(work)}
    assert rows["twin"]["offset"] == rows[key]["offset"]
    assert (rows[key]["drop_reason"], rows["twin"]["drop_reason"]) == (None, "exact_duplicate")
    let_through = FiltersConfig(no_pair=LOOSE.no_pair, skip=[*LOOSE.skip, "exact_duplicate"])
    done = materialise(planned(tmp_path / "raw", filters=let_through))
    from lookalike.data.triplets import read_triplets

    ids = [triplet.triplet_id for triplet in read_triplets(done.version)]
    assert len(ids) == len(set(ids)) >= 5


def test_counts_of_objects_members_and_images_add_up(planned: Planned, tmp_path: Path) -> None:
    """A hostile raw prefix; each number is counted here again, independently of the product."""
    raw = tmp_path / "raw"
    (raw / "more").mkdir(parents=True)
    photos = world(3, 3)
    first = tar_of(photos[:4], link("out.jpg", "/etc/hostname.jpg"), link("none.jpg", "gone"))
    headers = [link("d", ""), link("p.jpg", ""), link("__meta__/x", ""), link("README", ""), link(".DS_Store", "")]
    for info, kind in zip(headers, (tarfile.DIRTYPE, tarfile.FIFOTYPE, *[tarfile.REGTYPE] * 3), strict=True):
        info.type = kind
    second = tar_of(photos[4:], *headers)
    (raw / "joined.tar").write_bytes(first + second)
    (raw / "again.TAR").write_bytes(first)
    (raw / "empty.tar").write_bytes(b"")
    (raw / "page.tar.gz").write_bytes(b"<html>404 Not Found</html>")
    (raw / "photos.zip").write_bytes(b"PK\3\4")
    (raw / "odd.tar.rar").write_bytes(b"Rar!")
    (raw / "zip.tar").write_bytes(b"PK\3\4" + bytes(3000))
    (raw / "more" / "README.md").write_text("hello")
    (raw / "ingest.json").write_text("{}")
    (raw / "out.tar").symlink_to(tmp_path)
    (raw / "gone.tar").symlink_to("nothing")
    (raw / "nested").symlink_to("more")
    (raw / "void").mkdir()
    os.mkfifo(raw / "pipe.tar")
    (raw / os.fsdecode(b"caf\xe9.tar")).write_bytes(first)
    listing = list_raw(str(raw), open_store(str(tmp_path / "dataset")))
    assert listing.objects.to_json() == {
        "found": 15,
        "read": 5,
        "reasons": {
            "dangling_link": {"count": 1, "examples": ["gone.tar"]},
            "empty_folder": {"count": 1, "examples": ["void"]},
            "link_outside": {"count": 1, "examples": ["out.tar"]},
            "name_not_utf8": {"count": 1, "examples": ["caf\\udce9.tar"]},
            "not_a_shard": {"count": 2, "examples": ["more/README.md", "nested/README.md"]},
            "record_of_ingest": {"count": 1, "examples": ["ingest.json"]},
            "special_file": {"count": 1, "examples": ["pipe.tar"]},
            "unsupported_archive": {"count": 2, "examples": ["odd.tar.rar", "photos.zip"]},
        },
    }
    work = planned(raw, filters=LOOSE)
    members = 2 * (8 + 2) + 10 + 5
    assert work.members.found == members
    assert set(work.members.counts) == {
        *("link_outside", "link_to_nothing", "folder", "special_file"),
        *("webdataset_meta", "no_extension", "hidden_file"),
    }
    rows = rows_of(work)
    assert work.members.read == 2 * (len(photos) + 4) == members - work.members.counts.total()
    assert len(rows) == len(photos) + 4 + 3  # three shards that are no tar have a row each
    assert {row["shard"] for row in rows if row["cut"]} == {"empty.tar", "page.tar.gz", "zip.tar"}
    report = json.loads(materialise(work).version.read("report.json"))
    assert [row["unit"] for row in report["funnel"]] == sorted(
        (row["unit"] for row in report["funnel"]), key=["objects", "members", "images"].index
    )
    assert [row["left"] for row in report["funnel"] if row["reason"].endswith("_found")] == [5, members, len(rows)]
    assert report["funnel"][-1]["left"] == report["counts"]["images_kept"]
    page = work.dataset.read("v0001/report.html").decode()
    assert "out.jpg" in page
    assert REASONS["webdataset_meta"] in page
    shown = lines({"objects": listing.objects.to_json(), "members": work.members.to_json()})
    assert shown[0].startswith("passed over: 10 of 15 objects: dangling_link 1 (such as 'gone.tar'), ")
    assert shown[1].startswith(f"passed over: {work.members.counts.total()} of {members} members: ")


def test_unread_members_of_a_sample_are_counted(planned: Planned, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    photos = world(2, 2)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for each in photos:
            key, payload = each.sample()
            for extension, content in (payload | {"png": payload["jpg"], "npy": b"x", "mask.png": b"x"}).items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (tmp_path / "raw" / "x.tar").write_bytes(buffer.getvalue())
    work = planned(tmp_path / "raw", filters=LOOSE)
    assert dict(work.members.counts) == {"second_image": 4, "not_read": 4}
    assert work.members.found == 20


def test_counts_are_kept_for_another_embedder_and_found_subjects(planned: Planned, tmp_path: Path) -> None:
    from pipelines.curate.config import FoundConfig, LabelsConfig

    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "x.tar").write_bytes(tar_of(world(2, 2), link("b.jpg", "../b")))
    labels = LabelsConfig(found=FoundConfig())
    assert planned(tmp_path / "raw", filters=LOOSE, labels=labels).members.counts["link_outside"] == 1
    assert planned(tmp_path / "raw", filters=LOOSE).members.counts["link_outside"] == 1


class _Counted(LocalStore):
    listed: list[str]

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self.listed.append(prefix)
        return super().list(prefix)


def test_braces_list_each_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in "ab":
        (tmp_path / "raw" / folder).mkdir(parents=True)
        for i in range(50):
            (tmp_path / "raw" / folder / f"shard-{i:06d}.tar").write_bytes(b"x")
    _Counted.listed = []
    monkeypatch.setattr("lookalike.storage.local.LocalStore", _Counted)
    dataset = open_store(str(tmp_path / "dataset"))
    listing = list_raw(f"{tmp_path}/raw/{{a,b}}/shard-{{000000..000049}}.tar", dataset)
    assert _Counted.listed == ["a/shard-0000", "b/shard-0000"]
    assert (len(listing.shards), listing.objects.found) == (100, 100)
    with pytest.raises(InputError, match=r"the shard does not exist.*shard-000050\.tar and 9 more"):
        list_raw(f"{tmp_path}/raw/a/shard-{{000000..000059}}.tar", dataset)


def test_prefixes_and_shards_that_overlap_are_counted_once(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw" / "a", world(2, 4), per_shard=4)
    listing = list_raw(
        [str(tmp_path / "raw"), str(raw), f"{raw}/shard-00000{{0,1}}.tar"], open_store(str(tmp_path / "dataset"))
    )
    assert [info.key for info in listing.shards] == ["a/shard-000000.tar", "a/shard-000001.tar"]
    assert listing.objects.found == 2


@pytest.mark.parametrize(
    ("name", "says"),
    [("a.zip", r"not a raw shard.*give --raw \.tar files"), ("linked", "link_outside 1.*add their targets to --raw")],
)
def test_a_prefix_without_a_shard_is_an_error_that_lists_its_objects(tmp_path: Path, name: str, says: str) -> None:
    raw = write_raw(tmp_path / "elsewhere", world(2, 2))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.zip").write_bytes(b"PK")
    (tmp_path / "raw" / "linked").mkdir()
    (tmp_path / "raw" / "linked" / "shard.tar").symlink_to(raw / "shard-000000.tar")
    dataset = open_store(str(tmp_path / "dataset"))
    with pytest.raises(InputError, match=says):
        list_raw(str(tmp_path / "raw" / name), dataset)
    # and the advice works
    assert list_raw([str(tmp_path / "elsewhere")], dataset).shards
    assert list_raw(str(tmp_path / "raw" / "linked" / "shard.tar"), dataset).shards
