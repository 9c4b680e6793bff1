"""What one erasure covers: its prefix, its models, and how its names are recognised in texts."""

import re
from dataclasses import dataclass
from functools import cached_property

from lookalike.errors import ConfigError
from lookalike.registry.names import SEPARATOR, customer_prefix, validate_identifier
from lookalike.storage import Store, open_store
from lookalike.storage.erasing import CUSTOMERS

_LETTER = r"[a-z0-9_\-]"  # of an id: `mug` is not a part of `mug2`, `a-mug` or `mug-2`


@dataclass(frozen=True)
class Scope:
    """A customer, or one of its subjects, in a store."""

    store: str
    """URI of the store."""
    customer: str
    subject: str | None = None

    def __post_init__(self) -> None:
        validate_identifier(self.customer, "customer id")
        if self.subject is not None:
            validate_identifier(self.subject, "subject id")
        if customer_prefix(self.home.uri) != self.customer_home.uri:
            raise ConfigError(
                "the store lies below a customer's prefix itself",
                value=self.store,
                fix=f"name the store whose folder {CUSTOMERS!r} holds this customer",
            )

    @property
    def root(self) -> Store:
        """The store."""
        return open_store(self.store)

    @property
    def customer_home(self) -> Store:
        """The customer's prefix."""
        return self.root.child(CUSTOMERS).child(self.customer)

    @property
    def home(self) -> Store:
        """The prefix that is erased."""
        return self.customer_home.child(self.subject) if self.subject else self.customer_home

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the scope's model names and places in a text, and no other customer's or subject's."""
        return re.compile("|".join((self._name, self._place)))

    @cached_property
    def named(self) -> re.Pattern[str]:
        """Matches :attr:`pattern` with the rest of the name or place, to be replaced in a text."""
        return re.compile(rf'(?:{self.pattern.pattern})[^\s"\\]*')

    @cached_property
    def texts(self) -> list[str]:
        """Fixed texts, one of which is in each text that :attr:`pattern` matches."""
        subject = self.subject or ""
        place = f"{CUSTOMERS}/{self.customer}" + (f"/{subject}" if subject else "")
        return [f"{self.customer}{SEPARATOR}{subject}", place]

    @property
    def _name(self) -> str:
        end = rf"{re.escape(self.subject)}(?!{_LETTER})" if self.subject else r"(?=[a-z0-9])"
        return rf"(?<!{_LETTER}){re.escape(self.customer)}{SEPARATOR}{end}"

    @property
    def _place(self) -> str:
        parts = [CUSTOMERS, self.customer, *([self.subject] if self.subject else [])]
        return rf"(?<![^/]){'/'.join(map(re.escape, parts))}(?!{_LETTER})"

    def owns(self, model: str) -> bool:
        """Whether a registered model's name is one of the scope's."""
        return re.fullmatch(rf"{self._name}.*", model) is not None
