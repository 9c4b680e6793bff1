"""Photos are taken in upright and without metadata, with their labels and masks, and each file has a row."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lookalike.data.cleaning import clean_photo
from lookalike.data.images import ImageError, decode
from lookalike.errors import InputError
from lookalike.storage import Store, open_store, read_json
from pipelines.curate.config import ShardsConfig
from pipelines.curate.materialise import fit
from pipelines.finetune.intake import TakenIn, take_in
from pipelines.finetune.photos import photo_set
from tests.drawn import draw, jpeg

PLANTED = b"PLANTED-47.3769N"
_ORIENTATION, _MAKER, _GPS, _ARTIST = 0x0112, 0x010F, 0x8825, 0x013B


def private_photo(kind: str, view: int = 0, orientation: int = 1) -> bytes:
    """A photo with the planted text wherever its format holds metadata."""
    image, text = Image.fromarray(draw(0, view)[:120]), PLANTED.decode()
    exif = Image.Exif()
    exif[_MAKER], exif[_ARTIST] = text, text
    exif[_ORIENTATION] = orientation
    exif.get_ifd(_GPS)[29] = text
    options: dict[str, Any] = {"exif": exif.tobytes()}
    if kind == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text("where", text)
    else:
        options |= {"xmp": PLANTED, "quality": 90}
    if kind == "JPEG":
        options["comment"] = PLANTED
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue() + (PLANTED if kind == "JPEG" else b"")


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("HEIF", "jpg"), ("AVIF", "jpg")]
)
def test_cleaned_photo_is_upright_and_has_no_metadata(kind: str, extension: str, orientation: int) -> None:
    data = private_photo(kind, orientation=orientation)
    assert PLANTED in data
    cleaned, given = clean_photo(data)
    assert PLANTED not in cleaned
    assert PLANTED.hex().encode() not in cleaned
    assert given == (extension if orientation == 1 or kind == "PNG" else "jpg")
    if orientation == 1 and kind in ("JPEG", "PNG", "WEBP"):
        assert np.array_equal(decode(cleaned), decode(data))
    assert decode(cleaned).shape == decode(data).shape == ((160, 120, 3) if orientation == 6 else (120, 160, 3))
    assert np.abs(decode(cleaned).astype(int) - decode(data)).mean() < 3
    assert clean_photo(cleaned) == (cleaned, given)


def test_photo_without_metadata_is_unchanged() -> None:
    data = jpeg(draw(0, 0))
    assert clean_photo(data) == (data, "jpg")
    with pytest.raises(ImageError):
        clean_photo(data[: len(data) // 2])


@pytest.mark.parametrize("orientation", [1, 8])
def test_stored_image_of_a_snapshot_has_no_metadata(orientation: int) -> None:
    data = private_photo("JPEG", orientation=orientation)
    stored = fit(data, ShardsConfig())
    assert PLANTED not in stored
    assert decode(stored).shape == decode(data).shape


def _taken(folder: Path, target: Path, **options: Any) -> tuple[list[TakenIn], Store]:
    store = open_store(str(target))
    return take_in(photo_set(open_store(str(folder)), str(folder)), store, "mug", **options), store


def _photos(folder: Path) -> Path:
    folder.mkdir()
    for number, kind in enumerate(("JPEG", "PNG", "WEBP", "JPEG", "HEIF")):
        extension = "heic" if kind == "HEIF" else kind.lower()
        (folder / f"in paris {number}.{extension}").write_bytes(private_photo(kind, number, 6))
    return folder


def test_nothing_that_is_stored_holds_what_the_photos_metadata_said(tmp_path: Path) -> None:
    folder = _photos(tmp_path / "photos")
    (folder / "in paris 0.txt").write_text("a mug on grass")
    (folder / "in paris 1.json").write_text('{"caption": "a mug", "geoData": "PLANTED-47.3769N", "class": "cup"}')
    (folder / "in paris 2.mask.png").write_bytes(private_photo("PNG"))
    (folder / "broken.jpg").write_bytes(private_photo("JPEG")[:3000])
    rows, store = _taken(folder, tmp_path / "given")
    names = {row.name: row for row in rows}
    assert names["in paris 0.jpeg"].key == "mug/01.jpg"
    assert names["broken.jpg"].reason.startswith("undecodable")
    assert sorted(info.key for info in store.list("mug/") if not info.key.endswith(".json")) == [
        "mug/01.jpg", "mug/02.png", "mug/03.jpg", "mug/03.mask.png", "mug/04.jpg", "mug/05.jpg",
    ]  # fmt: skip
    assert read_json(store, "mug/01.json") == {"caption": "a mug on grass", "class": "mug"}
    assert read_json(store, "mug/02.json") == {"caption": "a mug", "class": "cup"}
    for info in store.list():
        assert PLANTED not in store.read(info.key), info.key
    before = {info.key: store.read(info.key) for info in store.list()}
    assert _taken(folder, tmp_path / "given")[0] == rows
    again = _taken(folder, tmp_path / "again")[1]
    assert {info.key: again.read(info.key) for info in again.list()} == before


def test_class_name_wins_over_labels_and_folder(tmp_path: Path) -> None:
    folder = _photos(tmp_path / "photos")
    (folder / "in paris 1.json").write_text('{"class": "cup"}')
    _, store = _taken(folder, tmp_path / "given", class_name="teapot")
    assert [read_json(store, f"mug/0{number}.json")["class"] for number in (1, 2)] == ["teapot", "teapot"]


def test_an_invalid_sidecar_is_an_error_that_names_it_before_anything_is_written(tmp_path: Path) -> None:
    folder = _photos(tmp_path / "photos")
    (folder / "in paris 1.json").write_text("{")
    with pytest.raises(InputError, match=r"in%20paris%201\.json|in paris 1\.json"):
        _taken(folder, tmp_path / "given")
    assert not (tmp_path / "given").exists()
