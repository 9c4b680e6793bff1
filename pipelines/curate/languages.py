"""Which languages captions are in, by ``py3langid``."""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

UNSURE = "und"  # ISO 639: undetermined
_MIN_CONFIDENCE = 0.2  # of 139 languages; "a photo of a dog" has 0.21 for English, "x 1" 0.04 for none


def count_languages(captions: Iterable[str]) -> Counter[str]:
    """How many captions are in each language, by its ISO 639 code; ``und`` where nobody can tell."""
    identifier = _identifier()
    return Counter(str(identifier.classify(caption)[0]) for caption in captions if caption)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=_MIN_CONFIDENCE)
