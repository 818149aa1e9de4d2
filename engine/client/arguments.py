"""What callers give, checked before it is sent: every refusal names the argument, its value and how to mend it.

Shapes: N images of side S, latents of dimension D.
"""

import math
import operator
import os
import re
import reprlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, SupportsFloat, TypeGuard, get_args

import numpy as np
import numpy.typing as npt

from engine.arrays import Bytes, Floats
from engine.client.values import Options, Priority

IMAGES = "uint8 [N, S, S, 3]"
SOURCES = f"images, {IMAGES}, or latents, float32 [N, D]"

# gRPC takes far longer ones for past ones.
LONGEST_S = 1e9

_LARGEST = float(np.finfo(np.float32).max)
_FINITE = f"a finite float32 number, at most {_LARGEST:.2g} in size"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/=+-]{1,128}")
_READ_IT = "; read the file first: open(path, 'rb').read()"
_EDITS = "edits must be strengths by name, for example {'Smiling': 1.5}, or pairs, for example [('Smiling', 1.5)]"

_short = reprlib.Repr()
_short.maxlist = _short.maxtuple = _short.maxdict = 3
_short.maxstring = _short.maxother = 80


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number within a range."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be a whole number, not {shown(value)}")
    if not least <= number <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {number}")
    return number


def number(name: str, value: Any) -> float:
    """A number of any size, infinity among them."""
    try:
        if isinstance(value, SupportsFloat) and not isinstance(value, bool):
            return float(value)
    except OverflowError:  # of whole numbers
        return math.inf
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{name} must be a number, not {shown(value)}")


def finite(name: str, value: Any) -> float:
    """A number that float32 can hold."""
    result = number(name, value)
    if not abs(result) <= _LARGEST:
        raise ValueError(f"{name} must be {_FINITE}, not {_short.repr(value)}")
    return result


def between(name: str, value: Any, least: float, most: float) -> float:
    """A number within a range."""
    result = number(name, value)
    if not least <= result <= most:
        raise ValueError(f"{name} must be from {least:g} to {most:g}, not {_short.repr(value)}")
    return result


def text(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {shown(value)}")
    return value


def choice(name: str, value: Any, choices: Collection[str]) -> Any:
    """One of some words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {shown(value)}")
    return value


def options(given: Options) -> Options:
    """Options of a call or a client."""
    for name, value in given.items():
        if name not in _OPTIONS:
            raise TypeError(f"unknown options: {name}; there are: {', '.join(_OPTIONS)}")
        _OPTIONS[name](name, value)
    return given


def is_latents(source: Any) -> TypeGuard[Floats]:
    """Whether a source is latents, good or bad, rather than images."""
    return isinstance(source, np.ndarray) and source.ndim == 2


def latents(name: str, value: Any) -> bytes:
    """Latents, float32 [N, D], as they travel."""
    if not isinstance(value, np.ndarray):
        mend = f"; make it one: np.asarray({name}, np.float32)" if isinstance(value, (list, tuple)) else ""
        raise TypeError(f"{name} must be an array, float32 [N, D], not {shown(value)}{mend}")
    if value.ndim != 2 or not np.issubdtype(value.dtype, np.floating):
        raise ValueError(f"{name} must be float32 [N, D], not {shown(value)}")
    return _floats(name, value)


def direction(name: str, value: Any) -> bytes:
    """A direction of the caller's own, float32 [D], as it travels."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must have the name of an attribute, or an array float32 [D], not {shown(value)}")
    if value.ndim != 1 or not np.issubdtype(value.dtype, np.floating):
        raise ValueError(f"{name}: the direction must be float32 [D], not {shown(value)}")
    return _floats(f"{name}: the direction", value)


def pixels(name: str, value: npt.NDArray[Any], allowed: str = IMAGES) -> Bytes:
    """Images, uint8 [N, S, S, 3]; `allowed` are the arrays that would have been right."""
    if value.dtype != np.uint8 or value.ndim != 4 or value.shape[3] != 3:
        raise ValueError(f"{name} must be {allowed}, not {shown(value)}")
    return value


def files(name: str, value: Any, allowed: str = IMAGES) -> list[bytes]:
    """Image files, by their bytes; `allowed` are the arrays that would have been right."""
    if isinstance(value, bytes):
        raise TypeError(f"{name} must be a list of image files, not the bytes of one; put it in a list: [file]")
    if _is_path(value) or not isinstance(value, Iterable):
        mend = _READ_IT if _is_path(value) else ""
        raise TypeError(
            f"{name} must be an array ({allowed}), or a list of image files as bytes, not {shown(value)}{mend}"
        )
    found = list(value)
    for index, file in enumerate(found):
        if not isinstance(file, bytes):
            mend = _READ_IT if _is_path(file) else f"; pixels go in as one array, {IMAGES}"
            raise TypeError(f"{name}[{index}] must be the bytes of an image file, not {shown(file)}{mend}")
    return found


def moves(edits: Any) -> Iterator[tuple[str | bytes, float]]:
    """The edits: each a name or a direction as it travels, and a strength."""
    if isinstance(edits, (str, bytes, np.ndarray)) or not isinstance(edits, Iterable):
        raise TypeError(f"{_EDITS}, not {shown(edits)}")
    for index, pair in enumerate(edits.items() if isinstance(edits, Mapping) else edits):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"{_EDITS}; edits[{index}] is {shown(pair)}")
        target, strength = pair
        if isinstance(target, str):
            yield target, finite(f"the strength of {target!r}", strength)
        else:
            yield direction(f"edits[{index}]", target), finite(f"the strength of edits[{index}]", strength)


def names(name: str, value: Any) -> list[str]:
    """Names of attributes."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        example = [value if isinstance(value, str) else "Male"]
        raise TypeError(f"{name} takes several names, for example {example}, not {shown(value)}")
    return [text(f"{name}[{index}]", one) for index, one in enumerate(value)]


def shown(value: Any) -> str:
    """What a value is, in a few words."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return "None" if value is None else f"the {type(value).__name__} {_short.repr(value)}"


def _floats(name: str, values: npt.NDArray[Any]) -> bytes:
    with np.errstate(over="ignore"):
        narrow = np.asarray(values, "<f4")
    finite = np.isfinite(narrow)
    if not finite.all():
        where = tuple(map(int, np.unravel_index(int(np.argmin(finite)), values.shape)))
        raise ValueError(f"{name}[{', '.join(map(str, where))}] must be {_FINITE}, not {values[where]}")
    return narrow.tobytes()


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _timeout(name: str, value: Any) -> None:
    if value is not None and not 0 < number(name, value) <= LONGEST_S:
        raise ValueError(f"{name} must be above 0 and at most {LONGEST_S:g} s, or None for none, not {value}")


def _request_id(name: str, value: Any) -> None:
    if not _REQUEST_ID.fullmatch(text(name, value)):
        raise ValueError(f"{name} must be 1 to 128 ASCII letters, digits and ._:/=+-, not {_short.repr(value)}")


_OPTIONS: dict[str, Callable[[str, Any], object]] = {
    "model": text,
    "priority": lambda name, value: choice(name, value, get_args(Priority)),
    "timeout": _timeout,
    "request_id": _request_id,
}
