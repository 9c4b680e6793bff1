"""Hide passwords, keys and tokens in text that is shown or stored. All patterns of secrets are in this module."""

import logging
import os
import re
from typing import Any

_DEEPEST = 100
HIDDEN = "***"
_SERVER = r"(?:https?|(?:postgresql|mysql|mssql|mariadb|redis)[a-z0-9+]*)"
_NAME = (  # of a parameter, setting, field or flag; repetitions here are bounded, since the text may be hostile
    r"(?:[a-z0-9_\-]{0,60}(?:password|passwd|secret|api[_\-]?key|access[_\-]?key|account[_\-]?key|accesssignature)|pwd"
    r"|(?:(?:access|api|auth|bearer|git|github|gitlab|hf|hub|id|refresh|sas|security|session|tracking|user|x-amz-security)"
    r"[_\-]?)?token|[a-z0-9_]{1,60}_(?:hf|hub|auth|access|session|tracking|api)_token)"
)


def _compiled(*patterns: str) -> list[re.Pattern[str]]:
    return [re.compile(pattern, re.IGNORECASE | re.DOTALL) for pattern in patterns]


_USERS = _compiled(
    # A password with "/", "?", "#" or a blank that was not encoded ends the authority early: user:pass/word@host.
    # "host:5000/a@b" does not match, since digits up to the "/" are a port.
    rf"\A(?P<kept>{_SERVER}:/+)(?!.*://)[^/?#\s:@]*:(?!\d+[/?#]).*(?=@)",
    rf"(?P<kept>\b{_SERVER}:/+)[^/?#\s:@]{{0,500}}:(?!\d+[/?#])\S{{0,1000}}(?=@)",
    rf"(?P<kept>\b{_SERVER}:/+)[^/?#\s:@]{{0,500}}:[^/?#\s]{{0,1000}}(?=%40)",
    r"(?P<kept>(?<![a-z0-9+.\-])[a-z][a-z0-9+.\-]{0,60}://)[^/?#\s]{0,1000}(?=@)",  # any other URI
)
_ENCODED_USERS = _compiled(r"(?P<kept>[a-z0-9+.\-]%3A(?:%2F){2})[^\s/?#&@]{0,1000}?(?=%40)")  # a URI inside a URI
_FIELDS = _compiled(
    rf"(?P<kept>[?&;#](?:sig(?:nature)?|auth|key|code|jwt|x-amz-(?:signature|credential)|{_NAME})=)[^&;#\s'\"]+",
    rf"(?P<kept>(?<![\w\-]){_NAME}\s?=\s?['\"]?)[^\s'\"&;,)}}\]]+",
    rf"(?P<kept>(?P<quote>['\"]){_NAME}(?P=quote)\s{{0,9}}:\s{{0,9}}['\"])[^'\"]+",  # JSON, and repr() of a dictionary
    rf"(?P<kept>--{_NAME}[\s=])\S+",
    r"(?P<kept>\b(?:proxy-)?authorization['\"]?\s?[:=]\s?['\"]?(?:(?:basic|bearer|digest|token|aws4-hmac-sha256)\s)?)"
    r"(?!(?:basic|bearer|digest|token)\b)[^'\"\r\n]+",
    r"(?P<kept>\b(?:x-amz-security-token|x-api-key|(?:set-)?cookie|aws_[a-z_]{0,60}(?:key|token))['\"]?:\s?['\"]?)[^\s'\"]+",
    r"(?P<kept>-----BEGIN [A-Z ]{0,60}PRIVATE KEY-----).*?(?=-----END|\Z)",
)
_WORDS = ("passw", "pwd", "secret", "token", "key", "sig", "auth", "code", "jwt", "cookie")  # each match holds one
# Tokens with the prefix of their issuer (AWS, Hugging Face, GitHub, GitLab, OpenAI, Slack, Google, Databricks,
# Standard Webhooks), and
# JSON Web Tokens.
_ISSUED = re.compile(
    r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}"
    r"|glpat-[\w\-]{20,}|whsec_[A-Za-z0-9+/=]{24,}|sk-[\w\-]{32,}|xox[abeoprs]-[\w\-]{20,}|AIza[\w\-]{35}|dapi[0-9a-f]{32}"
    r"|eyJ[\w\-]{10,}\.eyJ[\w\-]{6,}\.[\w\-]+)(?![A-Za-z0-9])"
)
_KEYS = ("API_KEY", "APIKEY", "ACCESS_KEY", "ACCOUNT_KEY", "SIGNING_KEY")
_VARIABLES = ("PASSWORD", "PASSWD", "SECRET", "TOKEN", *_KEYS)  # endings
_KEY = re.compile(_NAME, re.IGNORECASE)
_SHORTEST = 8  # characters of a variable's value that is hidden anywhere; shorter values would hide words


def redact(text: str) -> str:
    """Return ``text`` with each secret replaced by ``***``.

    It hides users and passwords of URIs (``http://***@host``), values of parameters, settings and headers that are
    named as secrets (``?token=***``, ``password=***``, ``Authorization: Bearer ***``), tokens of well-known issuers,
    and anywhere in the text the values of environment variables that hold secrets (``AWS_SECRET_ACCESS_KEY``,
    ``HF_TOKEN``, ``MLFLOW_TRACKING_PASSWORD``, …) if they have 8 characters or more, with digits and letters.
    """
    for value in _of_environment():
        text = text.replace(value, HIDDEN)
    patterns = _USERS if ":/" in text else []
    patterns = patterns + _ENCODED_USERS if "%3" in text else patterns
    patterns = patterns + _FIELDS if any(map(text.lower().__contains__, _WORDS)) else patterns
    for pattern in patterns:
        text = pattern.sub(rf"\g<kept>{HIDDEN}", text)
    return _ISSUED.sub(HIDDEN, text)


def redacted(value: Any, depth: int = 0) -> Any:
    """Return the JSON value with every text and key redacted, and the text of keys such as ``password`` hidden.

    Values that are nested more than 100 levels deep are replaced by ``…``.
    """
    if depth > _DEEPEST:
        return "…"
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {
            redact(key) if isinstance(key, str) else key: HIDDEN if _is_secret(key, item) else redacted(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(redacted(item, depth + 1) for item in value) if type(value) in (list, tuple) else value
    return value


def redact_logs() -> None:
    """Hide secrets in the messages and tracebacks of every logger of this process from now on."""
    if logging.getLogRecordFactory() is not _Record:
        logging.setLogRecordFactory(_Record)


class _Record(logging.LogRecord):
    """A log record whose message and traceback are redacted for every handler."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if self.exc_info and self.exc_info[0] is not None:
            self.exc_text = redact(logging.Formatter().formatException(self.exc_info))

    def getMessage(self) -> str:  # noqa: N802, the name in logging
        return redact(super().getMessage())


def _is_secret(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, str) and bool(value) and _KEY.fullmatch(key) is not None


def _of_environment() -> list[str]:
    """Values of environment variables that hold secrets, longest first."""
    values = {os.environ.get(name, "") for name in os.environ if name.upper().endswith(_VARIABLES)}
    long = (value for value in values if len(value) >= _SHORTEST)
    mixed = [value for value in long if any(map(str.isdigit, value)) and any(map(str.isalpha, value))]
    return sorted(mixed, key=len, reverse=True)
