"""The forms of the server's log."""

import io
import json
import logging
import threading
from collections.abc import Iterator

import pytest

from engine.telemetry import logs
from engine.telemetry.logs import CallLog, request_id


@pytest.fixture(autouse=True)
def _leave_logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    request_id.set("")


def written(capsys: pytest.CaptureFixture[str]) -> str:
    """What is on stderr since the last time."""
    logs.flush()
    return capsys.readouterr().err


def test_lines_for_people_name_the_call(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "text")
    logger = logging.getLogger("engine.somewhere")
    logger.info("outside of calls")
    request_id.set("id-1")
    logger.warning("%d inside", 1)
    logger.debug("not shown")
    outside, inside = written(capsys).splitlines()
    assert outside.endswith("INFO engine.somewhere: outside of calls")
    assert inside.endswith("WARNING engine.somewhere: [id-1] 1 inside")


def test_json_has_one_object_a_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("debug", "json")
    request_id.set("id-2")
    logger = logging.getLogger("engine.somewhere")
    logger.info('line\nbreak, "quotes" and ü')
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("it failed")
    CallLog().failed("Edit", "NOT_FOUND", "anna", 0.0015, "unknown attribute")
    first, second, third = map(json.loads, written(capsys).splitlines())
    assert first["message"] == 'line\nbreak, "quotes" and ü'
    assert (first["level"], first["logger"], first["request_id"]) == ("info", "engine.somewhere", "id-2")
    assert first["time"].endswith("+00:00")
    assert second["trace"].startswith("Traceback")
    assert "ValueError: broken" in second["trace"]
    expected = {"method": "Edit", "code": "NOT_FOUND", "client": "anna", "milliseconds": 1.5}
    assert expected.items() <= third.items()


def test_a_flood_of_failures_is_counted_and_not_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.set_up("info", "text")
    log = CallLog()
    now = 1000.0
    monkeypatch.setattr("engine.telemetry.logs.time.monotonic", lambda: now)
    for _ in range(5000):
        log.failed("Edit", "RESOURCE_EXHAUSTED", "anna", 0.001, "the queue is full")
    assert len(written(capsys).splitlines()) == 100
    now += 1
    log.failed("Edit", "RESOURCE_EXHAUSTED", "anna", 0.001, "the queue is full")
    summary, line = written(capsys).splitlines()
    assert summary.endswith("4900 more requests failed, which are left out here")
    assert line.endswith("Edit RESOURCE_EXHAUSTED for anna in 1.000 ms: the queue is full")


def test_answered_calls_are_lines_for_debugging_only(capsys: pytest.CaptureFixture[str]) -> None:
    for level, lines in (("info", 0), ("debug", 1)):
        logs.set_up(level, "text")
        CallLog().answered("Edit", "anna", 0.0025)
        found = written(capsys).splitlines()
        assert len(found) == lines
    assert found[0].endswith("DEBUG engine.service: Edit OK for anna in 2.500 ms")


def test_a_failed_answer_of_a_stream_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "json")
    request_id.set("id-3")
    CallLog().failed_in_stream("EditStream", "NOT_FOUND", "anna", "no such attribute")
    line = json.loads(written(capsys))
    assert line["message"] == "EditStream answered NOT_FOUND to anna: no such attribute"
    expected = {"request_id": "id-3", "method": "EditStream", "code": "NOT_FOUND", "client": "anna"}
    assert expected.items() <= line.items()


def test_failures_within_streams_and_of_calls_are_limited_together(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.set_up("info", "text")
    log = CallLog()
    monkeypatch.setattr("engine.telemetry.logs.time.monotonic", lambda: 1000.0)
    for _ in range(80):
        log.failed("Edit", "NOT_FOUND", "anna", 0.001, "no such attribute")
        log.failed_in_stream("EditStream", "NOT_FOUND", "anna", "no such attribute")
    assert len(written(capsys).splitlines()) == 100


def test_what_clients_make_grpc_complain_of_is_not_written_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.set_up("info", "text")
    grpc = logging.getLogger("grpc._cython.cygrpc")
    now = 1000.0
    monkeypatch.setattr("engine.telemetry.logs.time.monotonic", lambda: now)

    def complain(times: int) -> None:
        for _ in range(times):
            try:
                b"Bearer token\xff".decode()
            except UnicodeDecodeError:
                grpc.exception("Invalid encoding on %s", b"Bearer token\xff")

    complain(50)
    lines = written(capsys).splitlines()
    assert len(lines) == 5
    assert all(line.endswith("ERROR grpc._cython.cygrpc: Invalid encoding on 13 bytes") for line in lines)
    now += 1
    complain(1)
    summary, line = written(capsys).splitlines()
    assert summary.endswith("gRPC logged 45 more messages, which are left out here")
    assert line.endswith("Invalid encoding on 13 bytes")


class Stalled(io.StringIO):
    """A stream whose reader reads only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = threading.Event()

    def write(self, text: str) -> int:
        self.reads.wait()
        return super().write(text)


def test_lines_beyond_those_that_may_wait_are_dropped_and_counted() -> None:
    stream = Stalled()
    handler = logs.BackgroundHandler(stream, most=5)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.Logger("engine.somewhere")
    logger.addHandler(handler)
    for number in range(20):
        logger.info("line %d", number)
    stream.reads.set()
    handler.flush()
    logger.info("%d lines", "no number")
    handler.flush()
    lines = stream.getvalue().splitlines()
    told = [line for line in lines if "dropped" in line]
    kept = [line for line in lines if line.startswith("line ")]
    assert kept == [f"line {number}" for number in range(len(kept))]
    assert told == [f"{20 - len(kept)} lines of the log were dropped: whoever reads it was too slow"]
    assert lines[-1].startswith("no line could be made of '%d lines'")
    handler.close()
