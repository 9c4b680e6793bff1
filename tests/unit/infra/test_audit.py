"""The checks of licences (make check) and vulnerabilities (make audit)."""

import runpy
from pathlib import Path
from typing import Any

import pytest

_SETUP = Path(__file__).resolve().parents[3] / "infra" / "setup"
_LOCKED = {"one": "1.0", "two_three": "2.0"}


def _audited(name: str, version: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "version": version, "vulns": [], **more}


@pytest.mark.parametrize(
    ("dependencies", "code", "said"),
    [
        ([_audited("one", "1.0"), _audited("two-three", "2.0")], 0, "2 packages audited and clean"),
        ([_audited("one", "1.0")], 2, "NOT AUDITED two_three 2.0"),
        ([], 2, "0 packages audited and clean"),
        ([_audited("one", "1.0"), {"name": "two-three", "skip_reason": "not found"}], 2, "two_three 2.0: not found"),
        ([_audited("one", "1.1"), _audited("two-three", "2.0")], 2, "NOT AUDITED one 1.0"),
        (
            [_audited("one", "1.0", vulns=[{"id": "CVE-1", "fix_versions": ["1.2"]}]), {"name": "two-three"}],
            1,
            "VULNERABLE one 1.0: CVE-1 (fixed in 1.2)",
        ),
    ],
)  # fmt: skip
def test_package_that_was_not_audited_is_not_clean(dependencies: list[Any], code: int, said: str) -> None:
    verdict = runpy.run_path(str(_SETUP / "audit.py"))["verdict"]
    found, lines = verdict(_LOCKED, dependencies)
    assert found == code
    assert said in "\n".join(lines)


def test_every_package_of_the_lock_is_read() -> None:
    locked = runpy.run_path(str(_SETUP / "audit.py"))["locked"](_SETUP.parents[1] / "requirements.lock")
    assert len(locked) > 200
    assert {"pip_audit", "detect-secrets", "pip-licenses"} <= locked.keys()


@pytest.mark.parametrize(
    ("licence", "right"),
    [
        ("MIT", True), ("MIT AND BSD-3-Clause", True), ("GPL-3.0 OR MIT", True), ("GPL-3.0", False),
        ("MIT AND GPL-3.0", False), ("MIT; Other", False), ("UNKNOWN", False), ("", False),
        ("Mozilla Public License 2.0 (MPL 2.0)", True),
    ],
)  # fmt: skip
def test_all_applicable_licences_must_be_allowed(licence: str, right: bool) -> None:
    refused = runpy.run_path(str(_SETUP / "licences.py"))["refused"]
    package = {"Name": "x", "Version": "1", "License": licence}
    allowed = {"MIT", "BSD-3-Clause", "Mozilla Public License 2.0 (MPL 2.0)"}
    assert (refused([package], allowed, {}) == []) is right
    assert refused([{**package, "License": "UNKNOWN"}], allowed, {"x": "MIT"}) == []
