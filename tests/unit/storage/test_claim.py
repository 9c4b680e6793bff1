"""Claims of prefixes: content is compared, locations and passwords are not."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from lookalike.config import IDENTITY_IF_SET, NOT_IDENTITY, fingerprint
from lookalike.errors import ConflictError, InputError
from lookalike.storage import Store, open_store
from lookalike.storage.claim import RECORD, claim, read_claim, run_once


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "out"))


def test_moved_inputs_count_as_the_same_inputs(store: Store) -> None:
    ignore = ("dataset",)
    first = claim(
        store, {"dataset": "/a", "seed": 1}, ignore=ignore, content={"snapshot": {"uri": "/a", "sha256": "x"}}
    )
    moved = {"uri": "s3://b/a", "sha256": "x"}
    assert claim(store, {"dataset": "s3://b/a", "seed": 1}, ignore=ignore, content={"snapshot": moved}) == first
    with pytest.raises(ConflictError, match="another snapshot"):
        claim(store, {"dataset": "/a", "seed": 1}, ignore=ignore, content={"snapshot": {**moved, "sha256": "y"}})
    with pytest.raises(ConflictError, match="another seed"):
        claim(store, {"dataset": "/a", "seed": 2}, ignore=ignore, content={"snapshot": moved})


def test_record_of_earlier_software_is_resumed_with_its_fingerprint(store: Store) -> None:
    earlier = {"dataset": "/a", "base": "/b", "seed": 1, "snapshot": {"uri": "/a", "version": 1, "sha256": "x"}}
    record = {"config": earlier, "identity": earlier, "fingerprint": fingerprint(earlier)}
    store.write(RECORD, json.dumps(record).encode())
    content = {"snapshot": {"uri": "/moved", "version": 1, "sha256": "x"}, "base_sha256": "b"}
    ignore = ("dataset", "base")
    ours = {"dataset": "/moved", "base": "/c", "seed": 1}
    assert claim(store, ours, ignore=ignore, content=content) == fingerprint(earlier)


def test_password_is_neither_stored_nor_compared(store: Store) -> None:
    config = {
        # pragma: allowlist nextline secret
        "endpoint": "http://mia:secret1@host",
        # pragma: allowlist nextline secret
        "nested": [{"uri": "https://a:secret1@b"}],
    }
    first = claim(store, config)
    assert b"secret1" not in store.read(RECORD)
    assert claim(store, json.loads(json.dumps(config).replace("secret1", "another2"))) == first


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"identity": 1}', b'{"config": {}}', b"\xff"])
def test_damaged_record_is_an_error_whose_fix_works(store: Store, damage: bytes) -> None:
    store.write(RECORD, damage)
    with pytest.raises(InputError, match="restore it, or remove it"):
        claim(store, {"seed": 1})
    store.delete(RECORD)
    assert claim(store, {"seed": 1})
    assert (read_claim(store) or {})["identity"] == {"seed": 1}


@dataclass(frozen=True)
class _Config:
    seed: int = 0
    workers: int = field(default=1, metadata=NOT_IDENTITY)
    height: int | None = field(default=None, metadata=IDENTITY_IF_SET)


def _run(store: Store, config: _Config) -> str:
    def work(run: str) -> str:
        store.write("result", b"x")
        return f"made by {run[:8]}"

    return run_once(store, "result", config, earlier=lambda run: f"earlier, by {run[:8]}", work=work)


def test_a_run_is_done_once_whatever_is_no_part_of_its_identity(store: Store) -> None:
    identity = fingerprint({"seed": 0})[:8]
    assert _run(store, _Config()) == f"made by {identity}"
    assert _run(store, _Config(workers=8)) == f"earlier, by {identity}"
    for other, name in ((_Config(seed=1), "seed"), (_Config(height=64), "height")):
        with pytest.raises(ConflictError, match=f"another {name}"):
            _run(store, other)


def test_a_setting_that_counts_if_set_is_compared_when_it_is_left_out(store: Store) -> None:
    tall = _Config(height=64)
    _run(store, tall)
    with pytest.raises(ConflictError, match="another height"):
        _run(store, replace(tall, height=None))
