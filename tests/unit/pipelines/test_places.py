"""Jobs read and write at the named location, with any characters in its name."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from pyarrow.fs import FileSelector

from lookalike.errors import ConfigError, ConflictError, InputError
from lookalike.storage import open_store
from lookalike.storage.arrow import arrow_filesystem
from lookalike.storage.claim import claim
from pipelines.curate.raw import list_raw, raw_store
from pipelines.curate.takedown import pin, pinned_hash, read_list
from pipelines.generate.config import GenerateConfig
from pipelines.generate.generation import _references

MARKED = ["raw #1", "raw?v=2", "raw%41", "100%", "{a,b}", "{a", "a}b{", "c:d", "a b ü", "*[x]", "a\\b", "~"]


@pytest.fixture(params=MARKED)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / request.param
    folder.mkdir()
    for decoy in ("raw", "raw ", "rawA", "a", "b", "100"):
        (tmp_path / decoy).mkdir()
        (tmp_path / decoy / "decoy.tar").write_bytes(b"")
    return folder


def test_raw_shards_are_those_of_the_place(place: Path, tmp_path: Path) -> None:
    (place / "x.tar").write_bytes(b"1")
    dataset = open_store("/elsewhere/dataset")
    for raw in (str(place), str(place / "x.tar"), place.as_uri(), [str(place / "x.tar"), str(place / "x.tar")]):
        shards = list_raw(raw, dataset).shards
        assert [(info.key, info.size) for info in shards] == [("x.tar", 1)]
        assert raw_store(raw).uri == place.as_uri()
    both = [str(place), str(tmp_path / "rawA")]
    assert {info.key for info in list_raw(both, dataset).shards} == {f"{place.name}/x.tar", "rawA/decoy.tar"}


def test_braces_name_shards_unless_a_folder_has_that_name(tmp_path: Path) -> None:
    for name in ("x1.tar", "x2.tar"):
        (tmp_path / name).write_bytes(b"")
    dataset = open_store("/elsewhere/dataset")
    assert [info.key for info in list_raw(f"{tmp_path}/x{{1..2}}.tar", dataset).shards] == ["x1.tar", "x2.tar"]
    for raw, words in {
        f"{tmp_path}/{{1..2": "brace",
        f"{tmp_path}/{{0..99999999999999}}.tar": "more than",
        "{a,b}" * 40: "more than",
    }.items():
        with pytest.raises(ConfigError, match=words):
            list_raw(raw, dataset)


def test_raw_and_dataset_in_one_place_are_refused_by_any_name(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "raw")
    for dataset in ("raw", "raw/x", "link/x", "raw/../raw", "."):
        with pytest.raises(ConfigError, match="share a prefix"):
            list_raw(str(tmp_path / "raw"), open_store(str(tmp_path / dataset)))


def test_take_down_list_is_read_from_its_location(place: Path) -> None:
    (place / "list #1?.txt").write_text("subject:dog\n")
    dataset = open_store(str(place / "dataset"))
    pinned = pin(str(place / "list #1?.txt"), dataset)
    assert len(read_list(pinned)) == 1
    assert dataset.exists(f"work/taken-down/{pinned_hash(pinned)}.txt")


def test_references_are_photos_of_the_place(place: Path) -> None:
    Image.new("RGB", (32, 32)).save(place / "x #1.png")
    bundle = SimpleNamespace(max_references=2)

    def read(location: str) -> list[tuple[str, bytes]]:
        config = GenerateConfig("models:/m/1", "out", prompt=["a mug"], reference=[location])
        return _references(config, bundle)  # type: ignore[arg-type]

    for location in (str(place), f"{place}/", str(place / "x #1.png"), place.as_uri(), (place / "x #1.png").as_uri()):
        assert [uri for uri, _ in read(location)] == [(place / "x #1.png").as_uri()]
    for location in ("s3://", "file://host/x", "", "s3:/x"):
        with pytest.raises(ConfigError):
            read(location)


def test_ray_keeps_its_state_in_the_place(place: Path) -> None:
    filesystem, path = arrow_filesystem(open_store(str(place)).child("ray"))
    filesystem.create_dir(f"{path}/attempt-1")
    assert (place / "ray" / "attempt-1").is_dir()
    assert [info.base_name for info in filesystem.get_file_info(FileSelector(path))] == ["attempt-1"]
    for uri in ("s3://bucket//x", "file:///a%FF"):
        with pytest.raises(ConfigError, match="Ray"):
            arrow_filesystem(open_store(uri))


def test_claim_of_an_earlier_version_matches(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    old = claim(store, {"raw": "file:///data/my dog #1", "stages": [{"x": "file:///a b"}]})
    assert claim(store, {"raw": "file:///data/my%20dog%20%231", "stages": [{"x": "file:///a%20b"}]}) == old
    with pytest.raises(ConflictError, match="raw"):
        claim(store, {"raw": "file:///data/my%20dog%20%232", "stages": [{"x": "file:///a%20b"}]})
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(InputError, match=r"run\.json"):
        claim(store, {"raw": "x"})
