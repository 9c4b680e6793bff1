"""Faulty members of real shards: each one becomes a row, kept or with its reason, and kept images can be read.

Which test shows which fault is a table in tests/README.md.
"""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.data.triplet_files import load_images
from lookalike.data.triplets import read_triplets
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.work import StageWork
from tests.drawn import draw, jpeg
from tests.unit.curate.test_stages import materialise


def view(number: int, width: int = 160) -> Image.Image:
    """Return a photo of the cup, 160 px high."""
    return Image.fromarray(draw(0, number)[:, :width])


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be turned by 90 degrees
GREY16 = Image.fromarray(np.asarray(view(2).convert("L")).astype(np.uint16) * 257)

# Key, extension, bytes of the image, and why it is to be dropped.
MEMBERS: list[tuple[str, str, bytes, str | None]] = [
    ("plain", "jpg", jpeg(draw(0, 0)), None),
    ("cmyk", "jpg", file_of(view(1).convert("CMYK"), "JPEG", quality=95), None),
    ("grey16", "png", file_of(GREY16, "PNG"), None),
    ("turned", "jpg", file_of(view(3, 120), "JPEG", quality=95, exif=TURNED), None),
    ("animated", "webp", file_of(view(4), "WEBP", save_all=True, append_images=[view(5)], lossless=True), None),
    ("png", "jpg", file_of(view(6), "PNG"), None),
    ("../outside", "jpg", jpeg(draw(0, 7)), None),
    ("/absolute", "JPEG", jpeg(draw(0, 8)), None),
    ("été-夏", "jpg", jpeg(draw(0, 9)), None),
    ("twice", "jpg", jpeg(draw(0, 10)), None),
    ("twice", "jpg", jpeg(draw(0, 11)), None),
    ("key", "with.dots.jpg", jpeg(draw(0, 12)), "undecodable"),  # WebDataset ends a key at its first dot
    ("bomb", "png", file_of(Image.new("1", (20_000, 20_000)), "PNG"), "undecodable"),  # 50 kB, and 1.2 GB unpacked
    ("half", "jpg", jpeg(draw(0, 13))[:2000], "undecodable"),
    ("empty", "jpg", b"", "undecodable"),
    ("page", "jpg", b"<html>404 Not Found</html>", "undecodable"),
    ("film", "gif", file_of(view(14), "GIF"), "undecodable"),
    ("unlabelled", "jpg", jpeg(draw(0, 15)), "unlabelled"),
]


@pytest.fixture
def work(planned: Callable[..., StageWork], tmp_path: Path) -> StageWork:
    """The plan of a shard of all of these; the JSON of the last is broken."""
    (tmp_path / "raw").mkdir()
    with tarfile.open(tmp_path / "raw" / "odd.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for key, extension, data, reason in MEMBERS:
            label = b'{"subject": "cup"' + (b"" if reason == "unlabelled" else b"}")
            for name, content in ((f"{key}.{extension}", data), (f"{key}.json", label)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    band = NoPair(min_similarity=-1.0, max_similarity=0.98)
    return planned(tmp_path / "raw", filters=FiltersConfig(no_pair=band, skip=["near_duplicate", "off_subject"]))


def test_every_member_has_its_row(work: StageWork) -> None:
    rows = work.read_plan(0, "images").to_pylist()
    expected = sorted((key, reason or "") for key, _, _, reason in MEMBERS)
    assert sorted((row["key"], row["drop_reason"] or "") for row in rows) == expected
    by_key = {row["key"]: row for row in rows}
    assert (by_key["turned"]["height"], by_key["turned"]["width"]) == (120, 160)
    assert "too many pixels" in by_key["bomb"]["error"]


def test_kept_images_are_in_the_snapshot(work: StageWork) -> None:
    done = materialise(work)
    triplets = read_triplets(done.version)
    assert len({triplet.target_image for triplet in triplets}) == sum(reason is None for *_, reason in MEMBERS)
    for triplet in triplets:
        target, references = load_images(done.version, triplet)
        assert {image.shape for image in (target, *references)} <= {(160, 160, 3), (120, 160, 3)}
