"""The page on which people choose between blind pairs of images: one HTML file that loads nothing."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Criterion:
    """A question that is asked about each pair."""

    name: str
    """``identity``, ``prompt`` or ``overall``."""
    question: str
    """The text that judges read."""


@dataclass(frozen=True)
class PagePair:
    """A pair of images, in an order that says nothing about the models; numbers index the page's images."""

    id: str
    """Id without meaning; what is behind it is not on the page."""
    prompt: str
    """The prompt that the images should follow."""
    references: tuple[int, ...]
    """Photos of the subject."""
    images: tuple[int, int]
    """The two images, ``first`` and ``second`` in exported choices."""
    repeats: str = ""
    """Id of the pair that this one shows a second time, after it and with sides swapped."""


@dataclass(frozen=True)
class PreferencePage:
    """The content of the page."""

    page: str
    """Id of the page, in every export."""
    criteria: Sequence[Criterion]
    pairs: Sequence[PagePair]
    images: Sequence[str]
    """``data:`` URIs."""


def render_preference(page: PreferencePage) -> str:
    """Render the page as one HTML document.

    Its policy allows images in ``data:`` URIs, and the one style and the one script whose hashes it names: nothing is
    loaded or sent, and no text can become markup or script. Equal content gives equal text.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("lookalike.report"),
        autoescape=select_autoescape(["html", "j2"], default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assert environment.loader is not None
    style, script = (environment.loader.get_source(environment, f"preference.{kind}")[0] for kind in ("css", "js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)};"
        " base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return environment.get_template("preference.html.j2").render(
        page=page, policy=policy, style=style, script=script, data=_inline_json(asdict(page))
    )


def _hash(text: str) -> str:
    """The source expression of an inline element in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _inline_json(value: object) -> str:
    """JSON in ASCII for a ``<script>`` element: no character in it can end the element or begin a comment."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
