"""The server's log: lines for people or JSON objects, each with the id of the call that it is about."""

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Literal

from engine.calls.call import current

logger = logging.getLogger(__name__)

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
    handler.addFilter(GrpcFilter())
    text = "%(asctime)s %(levelname)s %(name)s: %(tag)s%(message)s"
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(text))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


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


class Throttle:
    """Lets a few lines a second through, and counts the others.

    Args:
        most: Lines a second.
        tell: Takes the number of those that were left out of a second, when the next line comes after it.
    """

    def __init__(self, most: int, tell: Callable[[int], None]) -> None:
        self._most = most
        self._tell = tell
        self._second = 0
        self._lines = 0

    def passes(self) -> bool:
        """Whether there is to be a line."""
        second = int(time.monotonic())
        if second != self._second:
            left_out, self._second, self._lines = self._lines - self._most, second, 0
            if left_out > 0:
                self._tell(left_out)
        self._lines += 1
        return self._lines <= self._most


class GrpcFilter(logging.Filter):
    """Keeps short what gRPC itself has to say.

    Whoever can connect can make it complain, with bytes of his choice: of each value of a call's metadata that isn't
    UTF-8, a token among them, before anyone looks at the call. So bytes are shown as their number, without a trace,
    and there are a few lines a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self._throttle = Throttle(5, self._tell)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged; what it says of metadata is taken out of it."""
        if not record.name.startswith("grpc."):
            return True
        record.exc_info = None
        if isinstance(record.args, tuple):
            record.args = tuple(f"{len(arg)} bytes" if isinstance(arg, bytes) else arg for arg in record.args)
        return self._throttle.passes()

    def _tell(self, left_out: int) -> None:
        logger.warning("gRPC had %d more to complain of, for which there are no lines", left_out)


class CallLog:
    """One line for each call: for failed ones at info, for others at debug; and one for each failed answer in a stream.

    In an overload thousands fail in a second, and writing of them all would cost more than they do: beyond a hundred a
    second they are counted only.

    Attributes:
        verbose: Whether answered calls have lines too.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self.verbose = logger.isEnabledFor(logging.DEBUG)
        self._throttle = Throttle(100, self._tell)

    def failed(self, method: str, code: str, client: str, seconds: float, error: str) -> None:
        """A call was refused, failed or was given up."""
        if self._logger.isEnabledFor(logging.INFO) and self._throttle.passes():
            self._write(logging.INFO, (method, code, client, round(seconds * 1000, 3), error[:_MOST_ERROR]))

    def failed_in_stream(self, method: str, code: str, client: str, error: str) -> None:
        """A request of a stream was answered with an error; the stream goes on."""
        if self._logger.isEnabledFor(logging.INFO) and self._throttle.passes():
            fields = {"method": method, "code": code, "client": client, "error": error[:_MOST_ERROR]}
            self._logger.info("%s answered %s to %s: %s", *fields.values(), extra=fields)

    def answered(self, method: str, client: str, seconds: float) -> None:
        """A call was answered."""
        if self.verbose:
            self._write(logging.DEBUG, (method, "OK", client, round(seconds * 1000, 3), ""))

    def _write(self, level: int, values: tuple[str, str, str, float, str]) -> None:
        text = "%s %s for %s in %.3f ms: %s" if values[-1] else "%s %s for %s in %.3f ms%s"
        self._logger.log(level, text, *values, extra=dict(zip(FIELDS, values, strict=True)))

    def _tell(self, left_out: int) -> None:
        self._logger.info("%d more requests failed, for which there are no lines", left_out)
