"""A folder of photos as a source: files, names, classes and captions, and invalid folders."""

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.data.shards import iter_samples
from lookalike.errors import ConfigError, InputError
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.folder import class_of, plan_folder
from pipelines.ingest.source import Plan


def photo(path: Path, side: int = 8, seed: int = 0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(path)
    return path.read_bytes()


def plan(source: Path, **settings: object) -> Plan:
    return plan_folder(IngestConfig(source=str(source), raw="unused", **settings))  # type: ignore[arg-type]


def samples(plan: Plan, folder: Path) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    for shard in plan.shards:
        shard.write(folder / shard.name)
        with (folder / shard.name).open("rb") as file:
            found |= {sample.key: members for sample, members in iter_samples(file)}
    return found


def meta(members: dict[str, bytes]) -> dict[str, str]:
    return json.loads(members["json"])  # type: ignore[no-any-return]


def test_bytes_are_unchanged_and_metadata_comes_from_the_folder(tmp_path: Path) -> None:
    original = photo(tmp_path / "in" / "toy_car_03" / "00.jpg")
    found = samples(plan(tmp_path / "in", licence="CC0-1.0"), tmp_path)
    assert list(found) == ["toy_car_03-00"]
    assert found["toy_car_03-00"]["jpg"] == original
    assert meta(found["toy_car_03-00"]) == {
        "subject": "toy_car_03",
        "class": "toy car",
        "caption": "a photo of a toy car",
        "licence": "CC0-1.0",
        "source": f"file://{tmp_path}/in/toy_car_03/00.jpg",
    }


def test_sidecars_override_metadata_of_the_folder(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a" / "00.jpg")
    (tmp_path / "in" / "a" / "00.txt").write_text("my red mug\n")
    photo(tmp_path / "in" / "a" / "01.png")
    (tmp_path / "in" / "a" / "01.json").write_text('{"class": "mug", "licence": "MIT", "year": 2020}')
    found = samples(plan(tmp_path / "in"), tmp_path)
    assert meta(found["a-00"])["caption"] == "my red mug"
    assert meta(found["a-01"]) | {"class": "mug", "licence": "MIT", "year": 2020} == meta(found["a-01"])
    assert meta(found["a-01"])["caption"] == "a photo of a mug"


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_sidecar_that_is_not_an_object_is_named(tmp_path: Path, text: str) -> None:
    photo(tmp_path / "in" / "a" / "00.jpg")
    (tmp_path / "in" / "a" / "00.json").write_text(text)
    with pytest.raises(InputError, match=r"a/00\.json"):
        samples(plan(tmp_path / "in"), tmp_path)


def test_classes_of_dreambooth_are_read(tmp_path: Path) -> None:
    for name in ("dog2", "red_cartoon"):
        photo(tmp_path / "in" / name / "00.jpg")
    (tmp_path / "in" / "prompts_and_classes.txt").write_text(
        "Classes\n\nsubject_name,class\ndog2,puppy\n\nPrompts\n\nred_cartoon,no\n"
    )
    found = samples(plan(tmp_path / "in"), tmp_path)
    assert [meta(m)["class"] for m in found.values()] == ["puppy", "red cartoon"]


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("dog7", "dog"), ("toy_car_03", "toy car"), ("Red-Mug", "red mug"), ("007", "object"), ("duck_0700000", "duck")],
)
def test_class_of_a_folder(folder: str, expected: str) -> None:
    assert class_of(folder) == expected


def test_other_files_are_listed_and_undecodable_images_are_copied(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a" / "00.jpg")
    (tmp_path / "in" / "a" / "broken.JPEG").write_bytes(b"no image")
    (tmp_path / "in" / "a" / "notes.md").write_text("x")
    (tmp_path / "in" / "a" / "orphan.txt").write_text("x")
    (tmp_path / "in" / "a" / ".DS_Store").write_text("x")
    (tmp_path / "in" / "LICENSE").write_text("x")
    (tmp_path / "in" / "a" / "deep").mkdir()
    photo(tmp_path / "in" / "a" / "deep" / "01.jpg")
    made = plan(tmp_path / "in")
    assert set(made.skipped) == {"a/notes.md", "a/orphan.txt", "a/.DS_Store", "LICENSE", "a/deep/01.jpg"}
    found = samples(made, tmp_path)
    assert found["a-broken"]["jpeg"] == b"no image"
    assert made.subjects == 1


def test_keys_have_no_dots_and_are_unique(tmp_path: Path) -> None:
    for name in ("a.b/0.1.jpg", "a.b/0_1.jpg", "a.b/0_1.png"):
        photo(tmp_path / "in" / name)
    found = samples(plan(tmp_path / "in"), tmp_path)
    assert sorted(found) == ["a_b-0_1", "a_b-0_1-2", "a_b-0_1-3"]
    assert {meta(m)["subject"] for m in found.values()} == {"a.b"}


def test_subjects_can_be_chosen_and_excluded(tmp_path: Path) -> None:
    for name in "abc":
        photo(tmp_path / "in" / name / "00.jpg")
    assert set(samples(plan(tmp_path / "in", exclude_subjects=["b"]), tmp_path)) == {"a-00", "c-00"}
    made = plan(tmp_path / "in", subjects=["b"])
    assert made.subjects == 1
    assert made.skipped["a/"] == "excluded"
    with pytest.raises(InputError, match="'d'"):
        plan(tmp_path / "in", subjects=["d"])


def test_shards_are_bounded_and_equal_plans_write_equal_bytes(tmp_path: Path) -> None:
    for i in range(6):
        photo(tmp_path / "in" / "a" / f"{i}.png", side=400, seed=i)  # noise: about 0.47 MB each
    made = plan(tmp_path / "in", shard_mib=1)
    assert [shard.images for shard in made.shards] == [2, 2, 2]
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        assert len(samples(made, tmp_path / folder)) == 6
    for shard in made.shards:
        assert (tmp_path / "x" / shard.name).read_bytes() == (tmp_path / "y" / shard.name).read_bytes()


def test_changed_listing_changes_the_identity(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a" / "00.jpg")
    first = plan(tmp_path / "in").identity
    photo(tmp_path / "in" / "a" / "01.jpg")
    assert plan(tmp_path / "in").identity != first


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "missing or empty"),
        (["00.jpg"], "no photos in subject folders"),
        (["a/00.jpg", "b/notes.txt"], "folder of a subject has no image"),
    ],
)
def test_invalid_folders_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    with pytest.raises(InputError, match=message):
        plan(tmp_path / "in")


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="shard_mib"):
        IngestConfig(source="x", raw="y", shard_mib=0)
    with pytest.raises(ConfigError, match="photos needs --source sample"):
        IngestConfig(source="x", raw="y", photos="z")


def test_every_name_is_used_or_skipped_with_a_reason(tmp_path: Path) -> None:
    source = tmp_path / "in"
    photo(source / "cup" / "00.jpg")
    photo(tmp_path / "elsewhere" / "hat" / "00.jpg", seed=1)
    (tmp_path / "elsewhere" / "secret.txt").write_text("another tenant's secret")
    (source / "cup" / "00.txt").symlink_to(tmp_path / "elsewhere" / "secret.txt")
    (source / "cup" / "01.jpg").symlink_to("00.jpg")
    (source / "cup" / "02.jpg").symlink_to(tmp_path / "elsewhere" / "hat" / "00.jpg")
    (source / "cup" / "03.jpg").symlink_to("gone.jpg")
    (source / "mug").symlink_to("cup")
    (source / "hat").symlink_to(tmp_path / "elsewhere" / "hat")
    (source / "loop").symlink_to(".")
    (source / "void").mkdir()
    photo(source / "cup" / "deep" / "00.jpg")
    os.mkfifo(source / "cup" / "04.jpg")
    made = plan(source)
    outside, nothing, nested = (
        "leads out of the source",
        "a link whose target does not exist",
        "not directly in a subject's folder",
    )
    assert {key: reason.split(": ")[0] for key, reason in made.skipped.items()} == {
        "cup/00.txt": f"a link that {outside}",
        "cup/02.jpg": f"a link that {outside}",
        "cup/03.jpg": nothing,
        "cup/04.jpg": "neither a file nor a folder",
        "cup/deep/00.jpg": nested,
        "hat": f"a link that {outside}",
        "loop": "a link that leads back to itself",
        "mug/00.txt": f"a link that {outside}",
        "mug/02.jpg": f"a link that {outside}",
        "mug/03.jpg": nothing,
        "mug/04.jpg": "neither a file nor a folder",
        "mug/deep/00.jpg": nested,
        "void": "an empty folder",
    }
    found = samples(made, tmp_path)
    assert sorted(found) == ["cup-00", "cup-01", "mug-00", "mug-01"]
    assert not any("secret" in meta(members)["caption"] for members in found.values())


def test_source_of_outside_links_names_the_reason(tmp_path: Path) -> None:
    photo(tmp_path / "elsewhere" / "hat" / "00.jpg")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "hat").symlink_to(tmp_path / "elsewhere" / "hat")
    with pytest.raises(InputError, match="can be read: a link that leads out of the source: copy its"):
        plan(tmp_path / "in")


@pytest.mark.parametrize("setting", ["subjects", "exclude_subjects"])
def test_subject_can_be_named_in_either_normal_form(tmp_path: Path, setting: str) -> None:
    nfc, nfd = (unicodedata.normalize(form, "josé") for form in ("NFC", "NFD"))
    photo(tmp_path / "in" / nfd / "00.jpg")
    photo(tmp_path / "in" / "cup" / "00.jpg")
    made = plan(tmp_path / "in", **{setting: [nfc]})
    assert made.skipped == {("cup/" if setting == "subjects" else f"{nfd}/"): "excluded"}


def test_folders_whose_names_differ_in_normal_form_are_one_subject(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "josé") for form in ("NFC", "NFD"))
    for number, name in enumerate((nfc, nfd)):
        photo(tmp_path / "in" / name / "00.jpg", seed=number)
    made = plan(tmp_path / "in")
    found = samples(made, tmp_path)
    assert made.subjects == 1
    assert len(found) == 2
    assert {meta(members)["subject"] for members in found.values()} == {nfc}


def test_list_of_classes_that_is_not_csv_is_an_error(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "dog2" / "00.jpg")
    (tmp_path / "in" / "prompts_and_classes.txt").write_text('subject_name,class\ndog2,"puppy\n' + "x" * 140_000)
    with pytest.raises(InputError, match=r"not CSV: field larger .* close each quote"):
        plan(tmp_path / "in")


def test_file_above_its_size_limit_is_skipped(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for name in ("00.jpg", "01.jpg", "02.jpg"):
        photo(source / "cup" / name)
    for name in ("01.jpg", "02.txt", "02.mask.png"):
        with (source / "cup" / name).open("ab") as file:
            file.truncate(1 << 40)  # a hole: it takes no space on the disk
    made = plan(source)
    assert made.skipped == {
        "cup/01.jpg": "more than 256 MiB (max_file_mib)",
        "cup/02.txt": "more than 16 MiB (max_text_mib)",
        "cup/02.mask.png": "more than 256 MiB (max_file_mib)",
    }
    assert sum(shard.images for shard in made.shards) == 2


def test_photo_that_becomes_a_link_after_the_listing_is_refused(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "cup" / "00.jpg")
    (tmp_path / "in" / "cup" / "00.txt").write_text("a cup")
    made = plan(tmp_path / "in")
    (tmp_path / "secret.txt").write_text("another tenant's secret")
    (tmp_path / "in" / "cup" / "00.txt").unlink()
    (tmp_path / "in" / "cup" / "00.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(InputError, match="a link leads out of the store"):
        made.shards[0].write(tmp_path / "s.tar")
