"""The server's log: lines for people or JSON objects, each with the id of the call that it is about."""

import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import datetime, timezone
from functools import partial
from typing import Any, Literal, TextIO

logger = logging.getLogger(__name__)
_calls = logging.getLogger("engine.service")

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Name of the call that this task answers; empty outside of any."""

FIELDS = ("method", "code", "client", "milliseconds", "error")
"""Extra attributes of log records that become keys of the JSON objects."""

_MOST_ERROR = 500  # characters
_MOST_LINES = 8192
_FLUSH_S = 1.0


def set_up(level: str, form: Literal["text", "json"]) -> None:
    """Sends the log to stderr, as lines for people or JSON objects, by a thread: see `BackgroundHandler`."""
    handler = BackgroundHandler(sys.stderr)
    handler.addFilter(_add_request_id)
    handler.addFilter(GrpcFilter())
    text = "%(asctime)s %(levelname)s %(name)s: %(tag)s%(message)s"
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(text))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def flush() -> None:
    """Returns when what was logged so far is written, or soon where nobody reads it."""
    for handler in logging.getLogger().handlers:
        handler.flush()


class BackgroundHandler(logging.Handler):
    """Has lines written by a thread of its own: whoever logs doesn't wait for whoever reads the log.

    While the reader stalls, so many lines wait at `most`; beyond, new ones are dropped and counted. When it goes on, a
    line says how many there were. Lines that can't be written at all, to a full disk or a closed pipe, are dropped.
    """

    def __init__(self, stream: TextIO, most: int = _MOST_LINES) -> None:
        super().__init__()
        self._stream = stream
        self._queue: queue.Queue[str | threading.Event | None] = queue.Queue(most)
        self._dropped = 0
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Leaves a record's line to the thread, or counts it."""
        try:
            line = self.format(record)
        except Exception as error:  # the standard way would write to stderr, and may wait there
            line = f"no line could be made of {record.msg!r}: {error!r}"
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Returns when the lines so far are written, or soon: the reader may be why they are not."""
        written = threading.Event()
        try:
            self._queue.put(written, timeout=_FLUSH_S)
        except queue.Full:
            return
        written.wait(_FLUSH_S)

    def close(self) -> None:
        """Ends the thread, after the lines so far."""
        with suppress(queue.Full):
            self._queue.put_nowait(None)
        super().close()

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            if isinstance(entry, threading.Event):
                entry.set()
                continue
            self._write(entry)
            self.acquire()
            dropped, self._dropped = self._dropped, 0
            self.release()
            if dropped:
                text = "%d lines of the log were dropped: whoever reads it was too slow"
                record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (dropped,), None)
                self.filter(record)
                self._write(self.format(record))

    def _write(self, line: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(f"{line}\n")
            self._stream.flush()


def _add_request_id(record: logging.LogRecord) -> bool:
    name = request_id.get()
    record.request_id = name
    record.tag = f"[{name}] " if name else ""
    return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and what else is known.

    A library would need as many lines to be told these names.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        entry = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if name := getattr(record, "request_id", ""):
            entry["request_id"] = name
        entry.update({name: getattr(record, name) for name in FIELDS if hasattr(record, name)})
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class Throttle:
    """Lets `most` lines a second through; `tell` takes the number of those left out when the next one comes.

    For any thread.
    """

    def __init__(self, most: int, tell: Callable[[int], None]) -> None:
        self._most = most
        self._tell = tell
        self._second = 0
        self._lines = 0
        self._lock = threading.Lock()

    def passes(self) -> bool:
        """Whether there is to be a line."""
        second, left_out = int(time.monotonic()), 0
        with self._lock:
            if second != self._second:
                left_out, self._second, self._lines = self._lines - self._most, second, 0
            self._lines += 1
            passes = self._lines <= self._most
        if left_out > 0:
            self._tell(left_out)
        return passes


class GrpcFilter(logging.Filter):
    """Keeps short what gRPC itself has to say.

    Whoever can connect can make it complain, with bytes of his choice: of each value of a call's metadata that isn't
    UTF-8, a token among them, before anyone looks at the call. So bytes are shown as their number, without a trace,
    and there are a few lines a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self._throttle = Throttle(5, partial(logger.warning, "gRPC logged %d more messages, which are left out here"))

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged; what it says of metadata is taken out of it."""
        if not record.name.startswith("grpc."):
            return True
        record.exc_info = None
        if isinstance(record.args, tuple):
            record.args = tuple(f"{len(arg)} bytes" if isinstance(arg, bytes) else arg for arg in record.args)
        return self._throttle.passes()


class CallLog:
    """One line for each call: for failed ones at info, for others at debug; and one for each failed answer in a stream.

    In an overload thousands fail in a second, and writing of them all would cost more than they do: beyond a hundred a
    second they are counted only.
    """

    def __init__(self) -> None:
        self.verbose = _calls.isEnabledFor(logging.DEBUG)  # answered calls have lines, too
        self._throttle = Throttle(100, partial(_calls.info, "%d more requests failed, which are left out here"))

    def failed(self, method: str, code: str, client: str, seconds: float, error: str) -> None:
        """A call was refused, failed or was given up."""
        fields = {"method": method, "code": code, "client": client, "milliseconds": round(seconds * 1000, 3)}
        self._write("%s %s for %s in %.3f ms: %s", fields, error)

    def failed_in_stream(self, method: str, code: str, client: str, error: str) -> None:
        """A request of a stream was answered with an error; the stream goes on."""
        self._write("%s answered %s to %s: %s", {"method": method, "code": code, "client": client}, error)

    def answered(self, method: str, client: str, seconds: float) -> None:
        """A call was answered; not worth asking unless `verbose`."""
        fields = {"method": method, "code": "OK", "client": client, "milliseconds": round(seconds * 1000, 3)}
        _calls.debug("%s %s for %s in %.3f ms", *fields.values(), extra=fields)

    def _write(self, text: str, fields: dict[str, Any], error: str) -> None:
        if _calls.isEnabledFor(logging.INFO) and self._throttle.passes():
            fields["error"] = error[:_MOST_ERROR]
            _calls.info(text, *fields.values(), extra=fields)
