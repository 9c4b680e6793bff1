"""A sample that cannot be read is one row with a reason, and the rest of its shard is read."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lookalike.storage import open_store
from pipelines.curate.config import CurateConfig
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.index import IndexWork, RawShard, ShardIndexer, read_images
from pipelines.curate.inputs import Inputs
from pipelines.curate.raw import list_raw
from pipelines.curate.rows import CONFLICT
from pipelines.curate.work import StageWork
from tests.drawn import draw, jpeg, photo, world, write_raw

JPEG = jpeg(draw(0, 0))
CONFIG = CurateConfig(raw="raw", dataset="dataset")


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


MASK = png(Image.fromarray(np.pad(np.full((80, 80), 255, np.uint8), 40)))


def tar_of(*members: tuple[str, bytes], odd: str = "", **pax: str) -> bytes:
    """A tar; the member called ``odd`` gets the headers ``pax``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), dict(pax) if name == odd else {}
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def row_of(*members: tuple[str, bytes]) -> dict[str, Any]:
    """The row of the sample ``k``, which stands between two good ones."""
    good = [(f"{key}.{kind}", data) for key in "az" for kind, data in (("jpg", JPEG), ("json", b'{"subject": "cup"}'))]
    file = io.BytesIO(tar_of(*good[:2], *members, *good[2:]))
    first, *middle, last = [row for row, _ in read_images(file, "s.tar", CONFIG)]
    assert (first["subject"], last["subject"], first["error"], last["note"]) == ("cup", "cup", "", "")
    (row,) = middle
    return row


def test_a_jpeg_under_the_name_of_a_heic_is_read() -> None:
    row = row_of(("k.heic", JPEG), ("k.json", b'{"subject": "mug"}'))
    assert (row["error"], row["width"], row["note"]) == ("", 160, "")


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("jpg", (Path(__file__).parents[2] / "damaged-avif.jpg").read_bytes(), "AVIF"),
        ("jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "an EPS"),
        ("png", png(Image.new("RGB", (9, 9)), "GIF"), "a GIF"),
        ("webp", b"RIFF\x10\0\0\0WEBPVP8 ", "a damaged WebP"),
        ("jpg", b"", "an empty file"),
        ("heic", b"\0\0\0\x18ftypheic" + bytes(99), "HEIC"),
        ("gif", png(Image.new("RGB", (9, 9)), "GIF"), "no image among"),
    ],
)
def test_an_undecodable_image_is_a_row_with_its_error(name: str, data: bytes, why: str) -> None:
    row = row_of((f"k.{name}", data), ("k.json", b'{"subject": "mug"}'))
    assert why in row["error"]
    assert row["subject"] == "mug"


@pytest.mark.parametrize(
    ("document", "noted"),
    [
        (b"[" * 10_000 + b"]" * 10_000, "RecursionError"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "RecursionError"),
        (b"\xff\xfe{\x00", "not JSON"),
        ('{"subject": "café"}'.encode("cp1252"), "not UTF-8"),
        (b'{"subject": "cup"}\0', "NUL"),
        (b" " * (17 << 20), "MiB"),
        (b"[1, 2]", "not an object"),
        (b"7", "not an object"),
        (b'"text"', "not an object"),
        (b"NaN", "not an object"),
        (b'{"subject": {"name": "cup"}}', "a dictionary"),
        (b'{"subject": true}', "true"),
        (b'{"subject": ["cup", "mug"]}', "list of 2"),
        (b'{"subject": 1e999}', "infinite"),
    ],
)
def test_labels_that_cannot_be_read_are_missing_and_noted(document: bytes, noted: str) -> None:
    row = row_of(("k.jpg", JPEG), ("k.json", document))
    assert (row["subject"], row["error"]) == ("", "")
    assert noted in row["note"]


@pytest.mark.parametrize(
    ("values", "column", "expected"),
    [
        ('{"subject": NaN}', "subject", ""),
        ('{"subject": 42}', "subject", "42"),
        ('{"subject": 42.0}', "subject", "42"),
        ('{"subject": ' + "7" * 5000 + "}", "subject", "7" * 5000),
        ('{"subject": ["cup"]}', "subject", "cup"),
        ('{"caption": NaN}', "caption", ""),
        ('{"caption": ["", "a can on a table", "a red can"]}', "caption", "a can on a table"),
        ('{"caption": {"en": "a dog"}}', "caption", ""),
        ('{"caption": "so cute \\ud83d"}', "caption", "so cute"),
        ('{"caption": "a\\u0000dog"}', "caption", "a dog"),
        ('{"class": "None"}', "class_name", ""),
        ('{"class": null}', "class_name", ""),
        ('{"license": "CC-BY-4.0"}', "licence", "CC-BY-4.0"),
        ('{"licence": null, "license": "CC-BY-4.0"}', "licence", "CC-BY-4.0"),
        ('{"licence": "MIT", "license": "GPL-3.0"}', "licence", CONFLICT),
        ('{"license": {"name": "MIT"}}', "licence", CONFLICT),
        ('{"consent": true}', "consent", "true"),
    ],
)
def test_values_of_json_become_labels(values: str, column: str, expected: str) -> None:
    assert row_of(("k.jpg", JPEG), ("k.json", values.encode()))[column] == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_text_is_decoded_by_its_byte_order_mark(encoding: str) -> None:
    caption = "a photo of the café dog"
    by_json = row_of(("k.jpg", JPEG), ("k.json", json.dumps({"caption": caption}, ensure_ascii=False).encode(encoding)))
    by_text = row_of(("k.jpg", JPEG), ("k.txt", caption.encode(encoding)))
    assert by_json["caption"] == by_text["caption"] == caption
    other = row_of(("k.jpg", JPEG), ("k.txt", caption.encode("cp1252")))
    assert other["caption"] == ""
    assert "txt: line 1 is not UTF-8" in other["note"]


@pytest.mark.parametrize(
    ("mask", "area", "noted"),
    [
        (MASK, 0.25, ""),
        (png(Image.open(io.BytesIO(MASK)).resize((80, 80), Image.Resampling.NEAREST)), 0.25, ""),
        (png(Image.new("L", (160, 80), 255)), None, "160x80 px for a photo of 160x160"),
        (MASK[:60], None, "mask: "),
        (b"", None, "an empty file"),
    ],
)
def test_a_mask_that_cannot_be_used_is_noted(mask: bytes, area: float | None, noted: str) -> None:
    row = row_of(("k.jpg", JPEG), ("k.mask.png", mask), ("k.json", b'{"subject": "cup"}'))
    assert (row["subject_area"], row["error"]) == (area, "")
    assert noted in row["note"]


@pytest.mark.parametrize("error", [RecursionError("deep"), MemoryError(), RuntimeError("codec"), AttributeError("x")])
def test_any_exception_of_one_sample_is_its_row(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(pixels: np.ndarray) -> dict[str, Any]:
        if pixels.shape[0] == 200:
            raise error
        return usual(pixels)

    import pipelines.curate.index as module

    usual = module.features
    monkeypatch.setattr(module, "features", fail)
    row = row_of(("k.jpg", jpeg(draw(0, 0, 200))), ("k.json", b'{"subject": "mug"}'))
    assert row["error"].startswith(f"{type(error).__name__}: ")
    assert row["subject"] == "mug"


def test_an_interruption_is_not_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(pixels: np.ndarray) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.curate.index.features", stop)
    with pytest.raises(KeyboardInterrupt):
        row_of(("k.jpg", JPEG))


@pytest.mark.parametrize(
    "headers",
    [
        {"size": "many"},
        {"size": "9" * 5000},
        {"size": "-7"},
        {"mtime": "inf"},
        {"GNU.sparse.major": "x"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        {"GNU.sparse.size": "x", "GNU.sparse.map": "a,b"},
        {"GNU.sparse.map": "1,2,3,x"},
        {"GNU.sparse.realsize": "x", "GNU.sparse.name": "y"},
    ],
)
def test_an_invalid_tar_header_ends_at_most_its_shard(headers: dict[str, str]) -> None:
    members = [(f"{key}.{kind}", data) for key in "akz" for kind, data in (("jpg", JPEG), ("json", b"{}"))]
    rows = list(read_images(io.BytesIO(tar_of(*members, odd="k.jpg", **headers)), "s.tar", CONFIG))
    assert (rows[0][0]["key"], rows[0][0]["error"]) == ("a", "")
    assert all(row["cut"] == ("breaks off" in row["error"]) for row, _ in rows)


def test_an_unreadable_shard_is_reported_by_name(
    grid_embedder: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_raw(tmp_path / "raw", world(2, 3), per_shard=3)
    config = CurateConfig(raw=str(raw), dataset=str(tmp_path / "dataset"))
    store, dataset = open_store(config.raw), open_store(config.dataset)
    inputs = Inputs.of(config, list_raw(config.raw, dataset).shards)
    shards = [RawShard(number, info) for number, info in enumerate(inputs.shards)]
    indexer = ShardIndexer(IndexWork(config, inputs, store, dataset))

    def fail(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(indexer, "_embed", fail)
        assert indexer(shards[0])["error"].tolist() == ["RuntimeError: out of memory"]
    assert [indexer(shard)["error"].tolist() for shard in shards] == [[""], [""]]


def test_conflicting_licences_are_always_dropped(planned: Callable[..., StageWork], tmp_path: Path) -> None:
    photos = world(2, 4)
    meta = {"subject": photos[0].subject, "licence": "CC0-1.0", "license": "CC-BY-NC-4.0"}
    work = planned(write_raw(tmp_path / "raw", [replace(photos[0], metadata=meta), *photos[1:]]))
    (table,) = [work.read_plan(i, "images") for i in range(work.partitions)]
    rows = {row["key"]: row for row in table.to_pylist()}
    assert rows[photos[0].key]["drop_reason"] == "licence"
    assert "CC-BY-NC-4.0 and CC0-1.0" in rows[photos[0].key]["note"]
    assert work.read_summary(0).noted == {"licence": 1}


def test_flawed_and_good_samples_are_planned_together(planned: Callable[..., StageWork], tmp_path: Path) -> None:
    tokens = {"subject": "thing00", "caption": "<image> a thing <|im_end|>", "class": "thing"}
    flawed = [
        replace(photo(0, 4), jpeg=photo(0, 4).jpeg[:-2]),
        replace(photo(0, 5), jpeg=b"%!PS-Adobe"),
        replace(photo(0, 6), metadata={"subject": float("nan")}),
        replace(photo(0, 7), metadata=tokens),
        replace(photo(1, 5), metadata={"subject": "thing01", "caption": {"en": "a thing"}, "class": "thing"}),
    ]
    filters = FiltersConfig(skip=["off_subject", "near_duplicate"])
    work = planned(write_raw(tmp_path / "raw", [*world(2, 4), *flawed]), filters=filters)
    rows = {row["key"]: row for i in range(work.partitions) for row in _images(work, i)}
    assert len(rows) == 13
    assert rows["thing00-4"]["drop_reason"] is None
    assert rows["thing00-4"]["note"].startswith("image: ")
    assert (rows["thing00-5"]["drop_reason"], rows["thing00-6"]["drop_reason"]) == ("undecodable", "unlabelled")
    assert rows["thing00-7"]["caption"] == "a thing"
    assert rows["thing01-5"]["caption"] == ""
    assert sum(work.read_summary(i).noted.total() for i in range(work.partitions)) == 3


def _images(work: StageWork, partition: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = work.read_plan(partition, "images").to_pylist()
    return rows
