"""Promotion logs whose entries are signed: whoever may write to the store, but has no key, adds no entry."""

import base64
import json
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lookalike.config import canonical_json
from lookalike.errors import ConfigError, InputError
from lookalike.signing import SIGNING_KEY, TRUSTED_KEYS, public_key_text, sign
from pipelines.promote import SignConfig
from pipelines.promote import sign as sign_log
from tests.integration.test_champions import World, _entries, _forged, _last, built, world  # noqa: F401, fixtures

KEY, OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32)), Ed25519PrivateKey.from_private_bytes(bytes([1] * 32))


@pytest.fixture
def use_key(monkeypatch: pytest.MonkeyPatch) -> Callable[[Ed25519PrivateKey | None], None]:
    def use(key: Ed25519PrivateKey | None) -> None:
        raw = "" if key is None else base64.b64encode(key.private_bytes_raw()).decode()
        monkeypatch.setenv(SIGNING_KEY, raw)

    return use


def _sign(world: World) -> dict:  # noqa: F811
    return sign_log(SignConfig("mini", "signed from now on", tracking=world.uri))


def test_entries_are_signed_and_confirmed(
    world: World,  # noqa: F811
    use_key: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_key(KEY)
    assert world.promote("better")["promoted"]
    world.rollback()
    assert [entry.public_key for entry in _entries(world)] == [None, None] + [public_key_text(KEY)] * 2
    use_key(None)
    assert world.champion() == "good"
    monkeypatch.setenv(TRUSTED_KEYS, f"{public_key_text(OTHER)}, {public_key_text(KEY)}")
    assert world.champion() == "good"
    monkeypatch.setenv(TRUSTED_KEYS, public_key_text(OTHER))
    with pytest.raises(InputError, match=r"entry 4 of the promotion log is signed by the key .* does not name"):
        world.champion()


def test_promotion_without_the_key_is_refused(world: World, use_key: Callable[..., None]) -> None:  # noqa: F811
    use_key(KEY)
    world.rollback()
    use_key(None)
    for attempt in (lambda: world.promote("better"), lambda: world.rollback(to=2)):
        with pytest.raises(InputError, match=r"entries of this promotion log are signed, and there is no key.*SIGNING"):
            attempt()
    assert (world.champion(), len(_entries(world))) == ("first", 3)


def _unsigned(world: World) -> None:  # noqa: F811
    _forged(world, 4, public_key=None, signature=None)


def _copied_signature(world: World) -> None:  # noqa: F811
    _forged(world, 4)


def _anew(world: World) -> None:  # noqa: F811
    _forged(world, 4, kind="begun anew", previous_sha256=None, public_key=None, signature=None)


def _edited(world: World) -> None:  # noqa: F811
    values = json.loads(world.entry(3).read_text())
    world.entry(3).write_text(canonical_json({**values, "reason": "another"}))


def _of_another_model(world: World) -> None:  # noqa: F811
    """A signature by the operator's key, of an entry with the same bytes in another model's log."""
    _forged(world, 4, signature=None)
    values = json.loads(world.entry(4).read_text())
    del values["signature"]
    document = {"lookalike": "promotion log entry", "model": "other", "entry": values}
    signature = sign(KEY, canonical_json(document).encode())
    world.entry(4).write_text(canonical_json({**values, "signature": signature}))


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (_unsigned, "entry 4 of the promotion log is not signed, and the one before is"),
        (_anew, "entry 4 of the promotion log is not signed, and the one before is"),
        (_copied_signature, "entry 4 of the promotion log is damaged: the signature is not one of this document"),
        (_of_another_model, "entry 4 of the promotion log is damaged: the signature is not one of this document"),
        (_edited, "entry 3 of the promotion log is "),
    ],
)
def test_forged_entry_is_refused(
    world: World,  # noqa: F811
    use_key: Callable[..., None],
    forge: Callable[[World], None],
    message: str,
) -> None:
    """Also if the tag that says that the gate refused the bundle was removed, and the entry is chained correctly."""
    use_key(KEY)
    world.rollback()
    world.client.set_model_version_tag("mini", "3", "gate", "passed")
    forge(world)
    with pytest.raises(InputError, match=message):
        world.champion()
    with pytest.raises(InputError, match=message):
        world.promote("better")


def test_chained_entry_of_an_unsigned_log_is_refused_with_trusted_keys_only(
    world: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the signature is for: without it such an entry cannot be told from a promotion that was killed."""
    world.client.set_model_version_tag("mini", "3", "gate", "passed")
    _forged(world, 3)
    assert world.champion() == "bad"
    monkeypatch.setenv(TRUSTED_KEYS, public_key_text(KEY))
    with pytest.raises(InputError, match="entry 3 of the promotion log is not signed"):
        world.champion()


def test_sign_confirms_an_unsigned_log_and_for_one_of_an_old_key(
    world: World,  # noqa: F811
    use_key: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="no key to sign with"):
        _sign(world)
    use_key(OTHER)
    first = _sign(world)
    assert (first["number"], first["kind"], first["reason"]) == (3, "signed", "signed from now on")
    assert _sign(world) == first  # again: nothing new
    assert (world.champion(), len(_entries(world))) == ("good", 3)
    use_key(KEY)
    monkeypatch.setenv(TRUSTED_KEYS, public_key_text(KEY))
    with pytest.raises(InputError, match="does not name"):
        world.champion()
    assert _sign(world)["number"] == 4
    assert world.champion() == "good"
    assert world.rollback()["champion"] == 1  # the champion before, as without these entries
    assert world.rollback(to=2)["champion"] == 2
    assert world.promote("better")["champion_before"] == 2


def test_sign_confirms_no_log_that_was_changed(world: World, use_key: Callable[..., None]) -> None:  # noqa: F811
    values = json.loads(world.entry(1).read_text())
    world.entry(1).write_text(canonical_json({**values, "scores_sha256": "0" * 64}))
    use_key(KEY)
    with pytest.raises(InputError, match="entry 1 of the promotion log was changed"):
        _sign(world)
    assert not world.entry(3).exists()


def test_key_that_is_not_trusted_writes_nothing(
    world: World,  # noqa: F811
    use_key: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_key(KEY)
    _sign(world)
    monkeypatch.setenv(TRUSTED_KEYS, f"{public_key_text(KEY)} {public_key_text(OTHER)}")
    stranger = Ed25519PrivateKey.from_private_bytes(bytes([2] * 32))
    use_key(stranger)
    with pytest.raises(ConfigError, match="is not one that LOOKALIKE_TRUSTED_KEYS names"):
        world.rollback()
    monkeypatch.setenv(TRUSTED_KEYS, "nonsense")
    with pytest.raises(InputError, match="not an Ed25519 public key"):
        world.champion()
    monkeypatch.delenv(TRUSTED_KEYS)
    assert (_last(world).number, world.champion()) == (3, "good")
