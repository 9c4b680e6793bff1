"""Users and passwords of URIs, and other secrets, are hidden in all that is shown or stored."""

import io
import logging
import pickle
import time
from dataclasses import dataclass
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike import config as configs
from lookalike.errors import InputError
from lookalike.redaction import redact, redact_logs, redacted

_SCHEMES = ("http", "https", "postgresql", "postgresql+psycopg2", "mysql+pymysql", "mssql+pyodbc")
_PASSWORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=6).map(
    lambda text: "S3" + text
)


@given(_PASSWORDS, st.sampled_from(_SCHEMES), st.booleans())
def test_passwords_of_uris_are_hidden(password: str, scheme: str, encoded: bool) -> None:
    shown = quote(password, safe="") if encoded else password
    hidden = redact(f"cannot reach {scheme}://mia:{shown}@host:5000/path: refused")
    assert hidden == f"cannot reach {scheme}://***@host:5000/path: refused"


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/a@b",
        "s3://bucket/key@home",
        "models:/mini@champion",
        "file:///photos/me@home",
        "sqlite:////absolute/m.db",
        "http://[::1]:5000",
        "mail me@home",
        "",
    ],
)
def test_text_without_passwords_is_unchanged(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("http://token@host", "http://***@host"),
        ("http://u:a@b:c@host/x", "http://***@host/x"),
        ("http://a:b@h1 and https://c:d@h2", "http://***@h1 and https://***@h2"),
        ("postgresql://h/db?user=u&password=pw&x=1", "postgresql://h/db?user=u&password=***&x=1"),
        ("https://h/o?X-Amz-Signature=abc", "https://h/o?X-Amz-Signature=***"),
    ],
)
def test_each_form_of_a_password_is_hidden(text: str, hidden: str) -> None:
    assert redact(text) == hidden
    assert redacted({"a": [text, 1, None, (text,)]}) == {"a": [hidden, 1, None, (hidden,)]}


def test_errors_and_stored_configurations_hide_them() -> None:
    @dataclass(frozen=True)
    class Config:
        tracking: str

    uri = "http://mia:secret1@host"  # pragma: allowlist secret
    error = InputError(f"no answer from {uri}", value={"uri": uri}, fix=f"check {uri}")
    assert "secret1" not in f"{error} {error.what} {error.value} {error.fix} {pickle.loads(pickle.dumps(error))}"
    assert configs.to_dict(Config(uri)) == {"tracking": "http://***@host"}


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("https://h/x?token=T0", "https://h/x?token=***"),
        ("https://h/x#access_token=T0", "https://h/x#access_token=***"),
        ("https://a.blob/f?sv=1&sig=T0&se=1", "https://a.blob/f?sv=1&sig=***&se=1"),
        ("https://h/x?X-Amz-Security-Token=T0", "https://h/x?X-Amz-Security-Token=***"),
        ("http%3A%2F%2Fmia%3AT0%40host%2Fx", "http%3A%2F%2F***%40host%2Fx"),
        ("http:/mia:T0@h/x", "http:/***@h/x"),
        ("http://mia:T0%40h/", "http://***%40h/"),
        ("http://mia:a T0@h", "http://***@h"),
        # pragma: allowlist nextline secret
        ("git+https://x:T0@github.com/a/b", "git+https://***@github.com/a/b"),
        ("redis://:T0@h:1", "redis://***@h:1"),
        ("Authorization: Bearer T0", "Authorization: Bearer ***"),
        ("{'Authorization': 'Basic T0=='}", "{'Authorization': 'Basic ***'}"),
        ("x-api-key: T0", "x-api-key: ***"),
        ("host=h user=u password=T0 dbname=x", "host=h user=u password=*** dbname=x"),
        ("aws_secret_access_key = T0", "aws_secret_access_key = ***"),
        # pragma: allowlist nextline secret
        ("'aws_secret_access_key': 'T0'", "'aws_secret_access_key': '***'"),
        # pragma: allowlist nextline secret
        ('{"password": "T0"}', '{"password": "***"}'),
        ("HF_TOKEN=T0", "HF_TOKEN=***"),
        ("--tracking_token T0", "--tracking_token ***"),
        ("AccountKey=T0;Endpoint=x", "AccountKey=***;Endpoint=x"),
        ("no key " + "AKIA" + "ABCDEFGH23456789", "no key ***"),
        ("hf_" + "aB3" * 12 + " is bad", "*** is bad"),
        ("ghp_" + "a1B2" * 9, "***"),
        ("eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxIn0.abcdefghijk_-l", "***"),
        # pragma: allowlist nextline secret
        ("-----BEGIN RSA PRIVATE KEY-----\nT0\n-----END", "-----BEGIN RSA PRIVATE KEY-----***-----END"),
    ],
)
def test_each_kind_of_secret_is_hidden(text: str, hidden: str) -> None:
    assert redact(text) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "the tokenizer has no token '<img>' (max_tokens=77)",
        "tokens: 5, keys: 3, secrets of the duck",
        "lora has no tensor 'base_model.model.transformer.to_key'",
        "file:///me@home/x",
        "models:/acme--duck@champion",
        # pragma: allowlist nextline secret
        "b5c9b2052c30483bafc7acbb47bf88392b9ef2bdd840a1c1ffcd66dad8d22122",
        "s3://bucket/hf_cache/ask-me-anything",
    ],
)
def test_text_without_secrets_is_unchanged(text: str) -> None:
    assert redact(text) == text


def test_values_of_secret_variables_are_hidden_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted/Value+1")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "duck")  # a word: hiding it would hide words
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anIdentity1")
    assert redact("a duck of anIdentity1 with planted/Value+1!") == "a duck of anIdentity1 with ***!"
    assert redacted({"password": "x", "x": ["planted/Value+1"], "tokens": 5}) == {
        "password": "***",
        "x": ["***"],
        "tokens": 5,
    }


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text", ["x" * 300_000, "a-" * 50_000, "http://a:" * 20_000, "http%3A%2F%2F" * 5_000, "'password" * 20_000]
)  # fmt: skip
def test_hostile_text_is_redacted_quickly(text: str) -> None:
    started = time.monotonic()
    redact(text)
    assert time.monotonic() - started < 30


def test_logs_of_any_library_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = logging.getLogRecordFactory()
    output = io.StringIO()
    logger = logging.Logger("a library with a handler of its own")
    logger.addHandler(logging.StreamHandler(output))
    try:
        redact_logs()
        try:
            # pragma: allowlist nextline secret
            raise ValueError("http://mia:T0p@host refused") from OSError("password=T0p")
        except ValueError:
            # pragma: allowlist nextline secret
            logger.exception("seen: %s", "http://mia:T0p@host")
    finally:
        logging.setLogRecordFactory(factory)
    assert "T0p" not in output.getvalue()
    assert "seen: http://***@host" in output.getvalue()


def test_deeply_nested_value_is_cut() -> None:
    value: list[object] = []
    for _ in range(5000):
        value = [value]
    assert "…" in str(redacted(value))
