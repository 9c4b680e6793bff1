"""Keys of the local stack: identities that a user added are kept."""

import json
from pathlib import Path

import pytest

from infra.local.keys import USER, _other_identities


def test_added_identities_are_kept_and_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "s3.json"
    assert _other_identities(file) == []
    file.write_text(json.dumps({"identities": [{"name": USER}, {"name": "acme"}]}))
    assert _other_identities(file) == [{"name": "acme"}]
    for damage in ("", "{", "[]", "{}", '{"identities": [1]}'):
        file.write_text(damage)
        with pytest.raises(SystemExit, match=r"s3\.json is not valid"):
            _other_identities(file)
