"""Published weights of networks: read from a file, or from the hub cache or a download, which fails in seconds.

Their absence is an error that says why and what to do: nothing else ever stands in for them unasked.
"""

import pickle
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from trainer.errors import ConfigError
from trainer.run_folder import sha256_of

DOWNLOAD_PROBE_SECONDS = 5.0


class UnavailableError(ConfigError):
    """Published weights that cannot be had.

    Attributes:
        reason: a clause that says why, and what to do about the file.
    """

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


def read(path: Path, flag: str) -> dict[str, Any]:
    """Reads a state_dict, tensors and nothing else; `flag` is the command line's name of the file, for messages.

    Raises:
        ConfigError: the file is missing or holds something else.
    """
    if not path.is_file():
        raise ConfigError(f"{flag} {path}: no such file")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ConfigError(f"{flag} {path}: not a file of PyTorch weights; give one that torch.save wrote") from error
    if not isinstance(state, dict):
        raise ConfigError(f"{flag} {path}: holds a {type(state).__name__}, not a state_dict")
    return state


def cached(url: str) -> Path:
    """Where the hub keeps a file once it is downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def check(url: str) -> None:
    """Looks for the weights behind an address, and downloads nothing.

    Raises:
        UnavailableError: they are not cached and the address does not answer, or the cached file is damaged.
    """
    path = cached(url)
    if not path.is_file():
        if within_reach(url):
            return
        raise UnavailableError(f"{path} does not exist and {url} does not answer; fetch it elsewhere and put it there")
    expected = path.stem.rsplit("-", 1)[-1]
    found = sha256_of(path)
    if not found.startswith(expected):
        raise UnavailableError(
            f"{path} is damaged: its SHA-256 begins with {found[: len(expected)]} instead of {expected}; delete it, "
            "and it is downloaded again"
        )


def fetch(url: str) -> dict[str, Any]:
    """The state_dict behind an address, whose file name ends with its SHA-256; kept in the hub cache.

    Raises:
        UnavailableError: it is neither cached nor within reach, or the file is damaged.
    """
    check(url)
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        if cached(url).is_file():
            raise UnavailableError(f"{cached(url)} cannot be read as weights; delete it") from error
        # No space, a broken connection, another hash.
        raise UnavailableError(f"the download of {url} failed ({error}); try again") from error


def within_reach(url: str) -> bool:
    """Whether the address answers in seconds; in a thread, as the look-up of a name has no time limit of its own."""
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        with suppress(OSError, ValueError), urllib.request.urlopen(request, timeout=DOWNLOAD_PROBE_SECONDS):
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(DOWNLOAD_PROBE_SECONDS)
    return answered.is_set()
