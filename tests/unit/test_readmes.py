"""READMEs name files that exist: links, and the tests that a table gives as evidence."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPO

_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
_TEST = re.compile(r"`(?:tests/)?((?:unit|integration|e2e|bench)/[\w/]+\.py)")
READMES = subprocess.run(
    ["git", "ls-files", "*.md"], cwd=REPO, capture_output=True, text=True, check=True
).stdout.splitlines()


@pytest.mark.parametrize("readme", READMES)
def test_links_and_named_tests_exist(readme: str) -> None:
    path = REPO / readme
    text = path.read_text(encoding="utf-8")
    places: list[Path] = [path.parent / link for link in _LINK.findall(text)]
    places += [REPO / "tests" / name for name in _TEST.findall(text)]
    missing = [str(place.relative_to(REPO)) for place in places if not place.exists()]
    assert not missing
