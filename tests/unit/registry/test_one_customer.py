"""A job whose places and models belong to two customers is refused before it reads or writes anything."""

import json
from pathlib import Path
from typing import Any

import pytest

from lookalike.bundles.manifest import MANIFEST
from lookalike.errors import ConfigError
from lookalike.registry.names import check_one_customer, owner_of
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.finetune import FinetuneConfig, finetune
from pipelines.generate import GenerateConfig, generate


@pytest.mark.parametrize(
    "places",
    [
        {"a": "s3://b/customers/acme/x", "b": "s3://b/customers/acme2/x"},
        {"a": "s3://b/customers/acme/x", "b": "models:/evil--mug@champion"},
        {"a": "acme--mug", "b": "models:/evil--mug/3"},
        {"a": "acme--mug", "b": "s3://other/store/customers/evil"},
        {"a": "acme--mug", "b": "/data/customers/acme/../evil/photos"},
        {"a": "acme--mug", "b": "file:///data/customers/%65vil/photos"},
        {"a": "acme--mug", "b": "s3://b/customers/evil/customers/acme/x"},
        {"a": "acme--mug", "b": "S3://b/customers/evil"},
    ],
)
def test_two_customers_are_refused(places: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="belongs to the customer"):
        check_one_customer(places)
    with pytest.raises(ConfigError, match="belongs to the customer"):
        check_one_customer(dict(reversed(places.items())))


@pytest.mark.parametrize(
    "places",
    [
        {"a": "acme--mug", "b": "s3://b/customers/acme/mug2", "c": "models:/acme--cup@champion"},
        {"a": "acme--mug", "b": "models:/lookalike-mini@champion", "c": "/data/dataset", "d": None},
        {"a": "s3://customers/evil/x", "b": "acme--mug"},  # a bucket of that name
        {"a": "s3://b/customers/", "b": "acme--mug"},
    ],
)
def test_one_customer_and_what_belongs_to_nobody_pass(places: dict[str, str | None]) -> None:
    check_one_customer(places)


def test_link_into_another_customers_prefix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "customers" / "evil").mkdir(parents=True)
    (tmp_path / "photos").symlink_to(tmp_path / "customers" / "evil")
    (tmp_path / "customers" / "acme").mkdir()
    (tmp_path / "customers" / "acme" / "photos").symlink_to(tmp_path / "customers" / "evil")
    for linked in (tmp_path / "photos", tmp_path / "customers" / "acme" / "photos"):
        with pytest.raises(ConfigError, match="belongs to the customer 'evil'"):
            check_one_customer({"the finetune": "acme--mug", "--photos": str(linked)})


def test_finetune_on_anothers_photos_model_base_or_distractors_is_refused(tmp_path: Path) -> None:
    theirs = str(tmp_path / "store" / "customers" / "evil" / "mug")
    for changes in (
        {"photos": theirs},
        {"model": theirs},
        {"model": "models:/evil--mug@champion"},
        {"base": theirs},
        {"distractors": theirs},
    ):
        settings: dict[str, Any] = {"photos": str(tmp_path), "store": str(tmp_path / "store"), "tracking": "none:"}
        with pytest.raises(ConfigError, match="belongs to the customer 'evil'"):
            finetune(FinetuneConfig(customer="acme", subject="mug", **(settings | changes)))
    assert not (tmp_path / "store").exists()


def test_anothers_bundle_at_a_place_of_ones_own_is_refused(bundle_dir: Path, tmp_path: Path) -> None:
    """A copy of a personal bundle still names its owner, which is part of its identity."""
    manifest = json.loads((bundle_dir / MANIFEST).read_text())
    copied = tmp_path / "store" / "customers" / "acme" / "copied"
    copied.mkdir(parents=True)
    (copied / MANIFEST).write_text(json.dumps({**manifest, "owner": "evil--mug"}))
    assert owner_of(str(copied)) == "evil--mug"
    assert owner_of(str(bundle_dir)) is None
    out = str(tmp_path / "store" / "customers" / "acme" / "out")
    with pytest.raises(ConfigError, match="belongs to the customer"):
        generate(GenerateConfig(model=str(copied), out=out, prompt=["a mug"], reference=[str(tmp_path / "r.jpg")]))
    with pytest.raises(ConfigError, match="belongs to the customer"):
        evaluate(EvaluateConfig(bundle=str(copied), suite=str(tmp_path / "suite"), out=out))
    config = FinetuneConfig(
        customer="acme", subject="mug", photos=str(tmp_path), store=str(tmp_path / "store"), model=str(copied)
    )
    with pytest.raises(ConfigError, match="belongs to the customer 'evil'"):
        finetune(config)


def test_images_of_one_customers_model_are_not_written_to_another(bundle_dir: Path, tmp_path: Path) -> None:
    out, photo = str(tmp_path / "customers" / "acme" / "out"), str(tmp_path / "customers" / "evil" / "mug" / "01.jpg")
    with pytest.raises(ConfigError, match=r"--out belongs|--reference .* belongs"):
        generate(GenerateConfig(model=str(bundle_dir), out=out, prompt=["a mug"], reference=[photo]))
