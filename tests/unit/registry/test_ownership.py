"""A bundle of one customer becomes no champion of another, and no base model."""

from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import InputError
from lookalike.registry.names import check_ownership, customer_prefix

BASE = {"base": None}
PERSONAL = {"base": {"uri": "s3://b/base", "sha256": "0" * 64}}
HOME = "s3://b/store/customers/acme"


def test_bundle_and_log_below_the_customers_prefix_pass() -> None:
    for manifest in (PERSONAL, BASE, {**PERSONAL, "owner": "acme--duck"}):
        check_ownership("acme--duck", f"{HOME}/duck/run/bundle", manifest, f"{HOME}/duck/promotion-log")
    check_ownership("base", "s3://b/run/bundle", BASE, "s3://b/log")
    check_ownership("base", "s3://b/run/bundle", PERSONAL, "s3://b/log")


@pytest.mark.parametrize(
    ("model", "bundle", "manifest", "log", "message"),
    [
        ("evil--duck", f"{HOME}/duck/bundle", PERSONAL, "s3://b/store/customers/evil/log", "does not lie below"),
        ("evil--duck", f"{HOME}/duck/bundle", PERSONAL, f"{HOME}/log", "does not lie below customers/evil/"),
        ("acme--duck", "s3://b/run/bundle", PERSONAL, f"{HOME}/log", "does not lie below customers/acme/"),
        ("acme--duck", "s3://customers/acme/bundle", PERSONAL, f"{HOME}/log", "does not lie below"),  # a bucket
        ("acme--duck", f"{HOME}x/bundle", PERSONAL, f"{HOME}x/log", "does not lie below"),
        ("acme--duck", f"{HOME}/duck/bundle", PERSONAL, "s3://b/log", "log of acme--duck does not lie below"),
        ("acme--duck", f"{HOME}/b", PERSONAL, "s3://b/other/customers/acme/log", "log of acme--duck does not"),
        # evil writes a prefix of acme's below its own
        ("acme--duck", "s3://b/customers/evil/customers/acme/b", PERSONAL, f"{HOME}/log", "does not lie below"),
        ("acme--duck", f"{HOME}/b", {**PERSONAL, "owner": "evil--duck"}, f"{HOME}/log", "belongs to evil--duck"),
        ("acme--duck", f"{HOME}/b", {**BASE, "owner": "acme--cat"}, f"{HOME}/log", "belongs to acme--cat"),
        ("base", f"{HOME}/b", PERSONAL, "s3://b/log", "a model for all customers"),
        ("base", "s3://b/copied", {**PERSONAL, "owner": "acme--duck"}, "s3://b/log", "belongs to acme--duck"),
        ("base", "s3://b/merged", {**BASE, "owner": "acme--duck"}, "s3://b/log", "belongs to acme--duck"),
    ],
)
def test_bundle_of_another_owner_is_refused(
    model: str, bundle: str, manifest: dict[str, Any], log: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        check_ownership(model, bundle, manifest, log)
    assert refused.value.fix


def test_link_to_another_customers_bundle_is_refused(tmp_path: Path) -> None:
    theirs, mine = tmp_path / "customers" / "acme" / "duck", tmp_path / "customers" / "evil" / "duck"
    theirs.mkdir(parents=True)
    mine.parent.mkdir()
    mine.symlink_to(theirs)
    with pytest.raises(InputError, match="does not lie below customers/evil/"):
        check_ownership("evil--duck", str(mine), PERSONAL, str(tmp_path / "customers" / "evil" / "log"))


def test_store_on_a_linked_disk_passes(tmp_path: Path) -> None:
    (tmp_path / "disk" / "acme" / "duck").mkdir(parents=True)
    (tmp_path / "customers").symlink_to(tmp_path / "disk")
    home = tmp_path / "customers" / "acme"
    check_ownership("acme--duck", str(home / "duck"), PERSONAL, str(home / "log"))


def test_customer_prefix_is_the_first_in_a_uri() -> None:
    assert customer_prefix("s3://b/customers/evil/customers/acme/x") == "s3://b/customers/evil"
    assert customer_prefix("s3://customers/acme/x") is None
    assert customer_prefix("/data/customers") is None
    assert customer_prefix("/data/customers/acme") == "file:///data/customers/acme"
