"""Templates of prompts as DreamBench writes them: ``a {0} {1} in the jungle``, a unique token and the class."""

import re
from typing import Literal

PromptKind = Literal["place", "recolouring", "accessory", "style"]

_SUBJECT = r"(?:\{0\} )?\{1\}"
_KINDS: tuple[tuple[PromptKind, re.Pattern[str]], ...] = (
    ("recolouring", re.compile(rf"an? (?:red|orange|yellow|green|blue|purple|pink|brown|black|white|grey) {_SUBJECT}")),
    ("style", re.compile(rf"an? (?:shiny|wet|cube shaped) {_SUBJECT}")),
    ("accessory", re.compile(rf"an? {_SUBJECT} (?:wearing .+|in an? .*outfit)")),
    ("place", re.compile(rf"an? {_SUBJECT} (?:in|on|with|floating|at|near|under|beside) .+")),
)


def kind_of(template: str) -> PromptKind | Literal[""]:
    """Return what a template of DreamBench asks to change; empty for one that is not like the published ones.

    The DreamBooth paper (section 4.1) lists recontextualization (``place``), accessorization (``accessory``) and
    property modification: the two colours (``recolouring``), and shiny, wet and cube shaped (``style``).
    """
    return next((kind for kind, pattern in _KINDS if pattern.fullmatch(template)), "")


def filled(template: str, class_name: str) -> str | None:
    """Return the prompt with the class and without a unique token, as for models that read references; None unless the
    template has ``{1}``, at most one ``{0}``, and no other braces."""
    rest = template.replace("{1}", "", 1).replace("{0}", "", 1)
    if "{1}" not in template or re.search(r"[{}]", rest):
        return None
    return " ".join(template.replace("{0}", "").replace("{1}", class_name).split())
