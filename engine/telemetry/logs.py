"""The server's log: lines for people or JSON objects, each with the id of the call that it is about."""

import json
import logging
import sys
import time
from datetime import datetime, timezone
from typing import Literal

from engine.calls.call import current

FIELDS = ("method", "code", "client", "milliseconds", "error")
"""Extra attributes of log records that become keys of the JSON objects."""

_MOST_ERROR = 500  # characters


def set_up(level: str, form: Literal["text", "json"]) -> None:
    """Sends the log to stderr.

    Args:
        level: Least severe messages that are logged.
        form: Lines for people, or one JSON object a line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_add_request_id)
    text = "%(asctime)s %(levelname)s %(name)s: %(tag)s%(message)s"
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(text))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Clients can make gRPC complain of every call, for example with keys that aren't UTF-8: a line each is enough.
    logging.getLogger("grpc._cython.cygrpc").addFilter(_drop_trace)


def _drop_trace(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True


def _add_request_id(record: logging.LogRecord) -> bool:
    request_id = current().request_id
    record.request_id = request_id
    record.tag = f"[{request_id}] " if request_id else ""
    return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and what else is known."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        entry = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := getattr(record, "request_id", ""):
            entry["request_id"] = request_id
        entry.update({name: getattr(record, name) for name in FIELDS if hasattr(record, name)})
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class CallLog:
    """One line for each call: for failed ones at info, for others at debug.

    In an overload thousands fail in a second, and writing of them all would cost more than they do: beyond a hundred a
    second they are counted only.

    Attributes:
        verbose: Whether answered calls have lines too.
    """

    _MOST = 100  # lines a second

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self.verbose = logger.isEnabledFor(logging.DEBUG)
        self._second = 0
        self._lines = 0

    def failed(self, method: str, code: str, client: str, seconds: float, error: str) -> None:
        """A call was refused, failed or was given up."""
        if not self._logger.isEnabledFor(logging.INFO):
            return
        second = int(time.monotonic())
        if second != self._second:
            if (left_out := self._lines - self._MOST) > 0:
                self._logger.info("%d more calls failed, for which there are no lines", left_out)
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines <= self._MOST:
            self._write(logging.INFO, (method, code, client, round(seconds * 1000, 3), error[:_MOST_ERROR]))

    def answered(self, method: str, client: str, seconds: float) -> None:
        """A call was answered."""
        if self.verbose:
            self._write(logging.DEBUG, (method, "OK", client, round(seconds * 1000, 3), ""))

    def _write(self, level: int, values: tuple[str, str, str, float, str]) -> None:
        text = "%s %s for %s in %.3f ms: %s" if values[-1] else "%s %s for %s in %.3f ms%s"
        self._logger.log(level, text, *values, extra=dict(zip(FIELDS, values, strict=True)))
