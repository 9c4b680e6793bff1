"""Raw shards that inflate without bound, and patterns that do not end, are rows or errors with their reason."""

import bz2
import gzip
import io
import lzma
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lookalike.data.limits import Limits
from lookalike.errors import InputError
from lookalike.storage import open_store
from pipelines.curate.compressed import compression_of, unpack
from pipelines.curate.config import CurateConfig, LabelsConfig
from pipelines.curate.index import read_images
from pipelines.curate.labels import read_labels
from tests.drawn import draw, jpeg

CONFIG = CurateConfig(raw="raw", dataset="dataset")


def shard(zeros: int) -> bytes:
    """A tar of a photo, and of a member of so many zeros."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in (("cup-0.jpg", jpeg(draw(0, 0))), ("cup-1.jpg", bytes(zeros))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


COMPRESS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: pa.compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_shard_that_inflates_too_far_names_the_limit(kind: str, tmp_path: Path) -> None:
    limits = Limits(max_unpacked_mib=8)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "s.tar").write_bytes(COMPRESS[kind](shard(100 << 20)))
    raw, dataset = open_store(str(tmp_path / "raw")), open_store(str(tmp_path / "dataset"))
    (info,) = raw.list()
    assert info.size < 200_000
    assert compression_of(raw, info) == kind
    copy, broken = unpack(raw, info, kind, dataset, "copy.tar", limits)
    assert copy.size <= 8 << 20
    assert "inflates to more than 8388608 bytes, by limits.max_inflation and limits.max_unpacked_mib" in broken
    data = dataset.read("copy.tar")
    rows = [row for row, _ in read_images(io.BytesIO(data), "s.tar", replace(CONFIG, limits=limits), broken=broken)]
    assert [(row["key"], row["cut"]) for row in rows] == [("cup-0", True), ("cup-1", True)]


def test_inflation_is_bounded_by_the_size_of_the_file() -> None:
    limits = Limits(max_inflation=100)
    assert limits.unpacked_bytes(1_000) == 64 << 20
    assert limits.unpacked_bytes(1 << 20) == 100 << 20
    assert limits.unpacked_bytes(1 << 50) == limits.max_unpacked_mib << 20


def test_memory_of_an_xz_stream_is_bounded(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 64 << 20}]
    data = bytearray(lzma.compress(bytes(1000), format=lzma.FORMAT_XZ, check=lzma.CHECK_NONE, filters=filters))
    assert data[16] == 28  # the dictionary's size in the block's header
    data[16] = 40  # 4 GiB
    import zlib

    data[20:24] = zlib.crc32(bytes(data[12:20])).to_bytes(4, "little")
    (tmp_path / "s.tar.xz").write_bytes(data)
    store = open_store(str(tmp_path))
    (info,) = store.list()
    _, broken = unpack(store, info, "xz", store, "copy.tar", Limits())
    assert "Memory usage limit" in broken


def test_a_photo_of_too_many_pixels_is_a_row_that_names_the_limit() -> None:
    file = io.BytesIO(shard(10))
    first, *_ = [row for row, _ in read_images(file, "s.tar", replace(CONFIG, limits=Limits(max_pixels=100)))]
    assert "too many pixels" in first["error"]
    assert "limits.max_pixels is 100" in first["error"]


def test_a_pattern_that_never_ends_is_stopped() -> None:
    config = LabelsConfig(subject_pattern="^(a|aa)+$")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"takes more than the 1 s of labels\.subject_pattern_s"):
        read_labels("a" * 60 + "!", {}, config, [])
    assert time.monotonic() - began < 20
    assert read_labels("cup-03", {}, LabelsConfig(subject_pattern="^(.+)-[0-9]+$"), [])["subject"] == "cup"


def test_a_key_that_a_pattern_cannot_search_is_a_row_with_its_reason() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        data = jpeg(np.zeros((32, 32, 3), np.uint8))
        info = tarfile.TarInfo("a" * 60 + "!.jpg")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    ((row, pixels),) = read_images(file, "s.tar", replace(CONFIG, labels=LabelsConfig(subject_pattern="^(a|aa)+$")))
    assert "labels.subject_pattern takes more than" in row["error"]
    assert pixels is None
