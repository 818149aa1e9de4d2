"""Measures that cannot be taken: said, never faked."""

from collections.abc import Callable
from typing import Any


class SkippedError(Exception):
    """A measure cannot be taken; the message says why and how to mend it."""


def attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a measure gives, or `{"skipped": reason}`."""
    try:
        return measure()
    except SkippedError as reason:
        return {"skipped": str(reason)}
