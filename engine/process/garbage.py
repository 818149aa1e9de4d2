"""Python's garbage collector, which needn't look again and again at what stays as long as the server."""

import gc

# Calls leave next to no cycles behind, and Python's own number has it search after every few calls.
_OBJECTS = 10_000


def collect_rarely() -> None:
    """Collects what is garbage, sets aside all that is left, and searches more rarely from now on."""
    gc.set_threshold(_OBJECTS, 20, 50)
    gc.collect()
    gc.freeze()
