"""Standard streams that were closed before the start."""

import os
import sys


def open_closed_streams() -> None:
    """Puts the null device in the place of stdin, stdout and stderr where Python found them closed, and so has None.

    To be called early: until then the first file or socket gets the stream's number, and what libraries print goes
    there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), mode))  # noqa: SIM115
