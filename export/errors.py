"""The errors of the export; `export.command` says what its commands make of them."""

from engine.errors import ParityError


class InputError(RuntimeError):
    """A flag or a folder that cannot be used. The message names it, its value and the mend."""


class RewriteError(ParityError):
    """A rewrite that is meant to be exact, and isn't: a fault of this program, so no other candidate is tried."""
