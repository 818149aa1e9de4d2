"""A figure in a run's report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A figure that was written, and what a person is to see in it.

    Attributes:
        file: its name in the run's figures folder.
        title: a few words.
        look_for: one sentence: what to look for.
    """

    file: str
    title: str
    look_for: str
