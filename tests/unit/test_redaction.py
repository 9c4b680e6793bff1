"""Users and passwords of URIs: hidden in everything that is shown or stored."""

import pickle
from dataclasses import dataclass
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike import config as configs
from lookalike.errors import InputError
from lookalike.redaction import redact, redacted

_SCHEMES = ("http", "https", "postgresql", "postgresql+psycopg2", "mysql+pymysql", "mssql+pyodbc")
_PASSWORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=6).map(
    lambda text: "S3" + text
)


@given(_PASSWORDS, st.sampled_from(_SCHEMES), st.booleans())
def test_no_password_is_left(password: str, scheme: str, encoded: bool) -> None:
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
def test_what_holds_no_password_is_left_alone(text: str) -> None:
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
def test_each_form_is_hidden(text: str, hidden: str) -> None:
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
