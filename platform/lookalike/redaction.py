"""Hide user names and passwords in text that is shown or stored."""

import re
from typing import Any

HIDDEN = "***"
# What stands before the last "@" of a URI's authority.
_USER = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*://)[^/?#\s]*@")
# A password with "/", "?" or "#" that was not encoded ends the authority early: user:pass/word@host. "host:5000/a@b"
# does not match, as digits up to the "/" are a port.
_UNENCODED = re.compile(
    r"(?P<scheme>\b(?:https?|(?:postgresql|mysql|mssql|mariadb)[a-z0-9+]*)://)[^/?#\s:@]*:(?!\d+[/?#])\S*@",
    re.IGNORECASE,
)
_QUERY = re.compile(
    r"(?P<name>[?&;](?:[a-z_\-]*password|passwd|pwd|[a-z_\-]*token|[a-z_\-]*secret|api_?key|sig(?:nature)?"
    r"|x-amz-(?:signature|credential))=)[^&;#\s'\"]*",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """``text`` with ``***`` for the user and password of each URI: ``http://***@host``, ``?password=***``."""
    if "://" not in text:
        return text
    for pattern in (_UNENCODED, _USER):
        text = pattern.sub(rf"\g<scheme>{HIDDEN}@", text)
    return _QUERY.sub(rf"\g<name>{HIDDEN}", text)


def redacted(value: Any) -> Any:
    """The same JSON value with every text redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redacted(item) for item in value) if type(value) in (list, tuple) else value
    return value
