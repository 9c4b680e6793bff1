from pathlib import Path

import pytest

from lookalike.config import parse
from lookalike.errors import ConfigError
from pipelines.curate.config import CurateConfig, PlanConfig, ShardsConfig
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from tests.conftest import REPO

LOCATIONS = ["--raw=file:///raw", "--dataset=file:///dataset"]


@pytest.mark.parametrize("path", sorted((REPO / "jobs" / "configs").glob("curate*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path: Path) -> None:
    config = parse(CurateConfig, [f"--config={path}", *LOCATIONS])
    assert config.filters.too_small.min_short_side_px == 480


def test_thresholds_can_be_set_by_flags() -> None:
    flags = ["--filters.no-pair.max-similarity=0.9", "--filters.skip=[blurry]", "--shards.image-size=null"]
    config = parse(CurateConfig, [*LOCATIONS, *flags])
    assert config.filters.no_pair.max_similarity == 0.9
    assert config.filters.skip == ["blurry"]
    assert config.shards.image_size is None


def test_an_unknown_key_is_rejected_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("raw: a\ndataset: b\nfilters: {too_smal: {min_short_side_px: 3}}\n")
    with pytest.raises(SystemExit) as caught:
        parse(CurateConfig, [f"--config={path}"])
    assert caught.value.code == 2
    assert "too_smal" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlanConfig(max_references=0), "max_references is below 1"),
        (lambda: PlanConfig(validation_fraction=1.0), "plan.validation_fraction is not below 1"),
        (lambda: ShardsConfig(image_size=0), "shards.image_size is below 16"),
        (lambda: ShardsConfig(jpeg_quality=101), "jpeg_quality is above 100"),
        (lambda: ShardsConfig(shard_mib=0), "below 1"),
    ],
)
def test_invalid_settings_are_rejected(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


BLIND = ["near_duplicate", "off_subject"]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (FiltersConfig(no_pair=NoPair(min_similarity=0)), r"near_duplicate', 'off_subject.*set filters.skip to"),
        (FiltersConfig(no_pair=NoPair(min_similarity=0), skip=["blurry", "off_subject"]), r"\(\['near_duplicate'\]\)"),
        (FiltersConfig(skip=BLIND), r"0\.4, 0\.95.*set filters.no_pair.min_similarity to 0"),
        (FiltersConfig(no_pair=NoPair(-1, -0.5), skip=BLIND), "outside the band"),
    ],
)
def test_filters_that_compare_embeddings_need_an_embedder(filters: FiltersConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CurateConfig(raw="a", dataset="b", embedder="none", filters=filters)
    CurateConfig(raw="a", dataset="b", filters=filters)
