"""Rows of a trace as text for a terminal, one line each."""

from typing import Any

from lookalike.config import canonical_json


def render(row: dict[str, Any], *, as_json: bool) -> str:
    """One line: canonical JSON, or ``KIND  values`` indented by the row's depth; a reason comes last."""
    if as_json:
        return canonical_json(row)
    values = [text for name, value in row.items() if (text := _shown(name, value))]
    reason = f"  MISSING: {row['reason']}" if "reason" in row else ""
    return f"{'  ' * row.get('depth', 0)}{row['kind']:<12}{'  '.join(values)}{reason}"


def _shown(name: str, value: Any) -> str:
    if name in ("kind", "depth", "reason", "config") or value is None or value in ({}, [], ""):
        return ""
    if isinstance(value, str) and name.endswith("sha256"):
        return f"{name.removesuffix('_sha256')} {value[:12]}"
    if isinstance(value, list):
        return f"{name} {', '.join(_item(item) for item in value)}"
    if isinstance(value, dict):
        return f"{name} {canonical_json(value)}"
    return str(value) if name in ("uri", "name", "component") else f"{name} {value}"


def _item(value: Any) -> str:
    if isinstance(value, dict):
        return canonical_json({key: item for key, item in value.items() if item not in (None, "")})
    return str(value)[:12]
