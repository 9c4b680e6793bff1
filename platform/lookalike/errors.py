"""Errors for users. Each message says what is wrong, with which value, and how to fix it."""

from functools import partial

from lookalike.redaction import redact, redacted


class LookalikeError(Exception):
    """Base of all errors for users: ``what`` is wrong, the ``value`` that caused it, and the ``fix``.

    Jobs print it without a traceback and exit with code 2. Users and passwords of URIs are hidden in all three.
    """

    def __init__(self, what: str, *, value: object = None, fix: str) -> None:
        self.what, self.value, self.fix = redact(what), redacted(value), redact(fix)
        shown = "" if value is None else f" ({self.value!r})"
        super().__init__(redact(f"{self.what}{shown}; {self.fix}"))

    def __reduce__(self) -> tuple[object, ...]:  # Ray ships exceptions between processes
        return (partial(type(self), value=self.value, fix=self.fix), (self.what,))


def describe(error: Exception) -> str:
    """Describe an exception in a message: ``what`` of our own errors, else its type and text."""
    return error.what if isinstance(error, LookalikeError) else f"{type(error).__name__}: {error}"


def first_line(text: object, length: int = 300) -> str:
    """The first line of a message, cut to ``length`` characters; empty if there is none."""
    line = next(iter(str(text).strip().splitlines()), "")
    return line if len(line) <= length else f"{line[: length - 1]}…"


class ConfigError(LookalikeError, ValueError):
    """A setting is not valid."""


class InputError(LookalikeError):
    """Input is missing, empty or unreadable."""


class ConflictError(LookalikeError):
    """An output already holds another run's result."""


class UnreachableError(LookalikeError):
    """A service (S3, MLflow, Ray) does not answer."""


class RefusedError(UnreachableError):
    """A service answers, and these credentials lack the permission for the request."""


class StoppedError(LookalikeError):
    """A job was stopped before it was done; the same command resumes."""


class BusyError(LookalikeError):
    """Another process works on the same output; jobs exit with code 4."""
