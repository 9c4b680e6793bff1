import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.errors import ConfigError
from lookalike.registry import personal_model_name, validate_identifier, validate_model_name


@pytest.mark.parametrize("value", ["a", "7", "acme", "backpack_dog", "acme-eu-1", "a_-b", "x" * 63, "_".join("abc")])
def test_valid_identifiers(value: str) -> None:
    assert validate_identifier(value) == value


_INVALID = ["", " ", "a b", "a\n", "a\0", "a/b", "a\\b", "a:b", "a@b", ".", "..", "../b", "a.b", "%2e%2e", "~a", "$a"]
_INVALID += ["a--b", "customer--subject", "a-", "-a", "_a", "a*", "a?", "{a}", "Acme", "é", "x" * 64]


@pytest.mark.parametrize("value", _INVALID)
def test_invalid_identifiers_are_named(value: str) -> None:
    with pytest.raises(ConfigError, match="customer id") as refused:
        validate_identifier(value, "customer id")
    assert repr(value) in str(refused.value)


@given(st.text(max_size=80))
def test_valid_identifier_is_one_path_segment(value: str) -> None:
    try:
        validate_identifier(value)
    except ConfigError:
        return
    assert value.isascii()
    assert value.strip("./\\ ") == value
    assert "/" not in value
    assert value == value.lower()


_identifiers = st.from_regex(r"[a-z0-9](?:[a-z0-9_]|-(?=[a-z0-9_])){0,20}", fullmatch=True)


@given(_identifiers, _identifiers)
def test_personal_model_name_splits_uniquely(customer: str, subject: str) -> None:
    name = personal_model_name(customer, subject)
    assert name.split("--") == [customer, subject]
    assert validate_model_name(name) == name


@pytest.mark.parametrize("name", ["", "a--b--c", "--a", "a--", "a/b", "A--b", "a---b"])
def test_invalid_model_names(name: str) -> None:
    with pytest.raises(ConfigError):
        validate_model_name(name)
