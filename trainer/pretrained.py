"""Published weights of networks: read from a file, or from the hub cache or a download, which fails in seconds."""

from __future__ import annotations

import logging
import pickle
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch

from trainer.errors import ConfigError

logger = logging.getLogger(__name__)

DOWNLOAD_PROBE_SECONDS = 5.0


def read(path: Path, flag: str) -> dict[str, Any]:
    """Reads a state_dict, tensors and nothing else.

    Args:
        path: the file.
        flag: the command line's name of it, for messages.

    Raises:
        ConfigError: the file is missing or holds something else.
    """
    if not path.is_file():
        raise ConfigError(f"{flag} {path}: no such file")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ConfigError(
            f"{flag} {path}: not a file of PyTorch weights; give a state_dict that torch.save wrote"
        ) from error
    if not isinstance(state, dict):
        raise ConfigError(f"{flag} {path}: holds a {type(state).__name__}, not a state_dict")
    return state


def cached(url: str) -> Path:
    """Where the hub keeps a file once it is downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def fetch(url: str) -> dict[str, Any] | None:
    """The state_dict behind an address, kept in the hub cache; None when it is neither cached nor within reach."""
    if not cached(url).is_file() and not within_reach(url):
        return None
    try:
        state: dict[str, Any] = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=True, check_hash=True, weights_only=True
        )
    except (pickle.UnpicklingError, OSError, RuntimeError) as error:  # no space, a broken download, a torn cache file
        logger.warning("the weights %s could not be loaded: %s", Path(url).name, error)
        return None
    return state


def within_reach(url: str) -> bool:
    """Whether the address answers in seconds; in a thread, as the look-up of a name has no time limit of its own."""
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=DOWNLOAD_PROBE_SECONDS):
                answered.set()
        except (urllib.error.URLError, OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(DOWNLOAD_PROBE_SECONDS)
    return answered.is_set()
