"""Calls with one answer: messages, metadata, and every way to be refused."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from serving import http2
from wires import (
    LIMIT_S,
    OWN_CONNECTION,
    SERVICE,
    Services,
    Wire,
    answers,
    connected,
    echo,
    echo_all,
    in_loop,
    path,
    quiet_log,  # noqa: F401
    refusal_of,
    served,
    serving,
    stream,
    unary,
)

from engine.transport.core import CoreCall
from engine.transport.permit import Unlimited


@in_loop
async def test_a_call_is_answered_with_metadata_in_both_directions() -> None:
    seen: dict[str, Any] = {}

    async def handle(request: bytes, context: Any) -> bytes:
        seen.update(context.invocation_metadata())
        context.set_trailing_metadata((("told", "yes"), ("told-bin", b"\xff\0")))
        return request + b"!"

    def look(call: CoreCall) -> Unlimited:
        seen["peer"] = call.peer()
        return Unlimited()

    async with serving(Services(Ask=unary(handle)), admit=look) as target, connected(target) as channel:
        call = channel.unary_unary(path("Ask"))(b"hello", metadata=(("key", "value"), ("key-bin", b"\0\xfe")))
        assert await call == b"hello!"
        trailing = dict(iter(await call.trailing_metadata()))
    assert (seen["key"], seen["key-bin"]) == ("value", b"\0\xfe")
    assert seen["peer"].startswith("ipv4:127.0.0.1:")
    assert (trailing["told"], trailing["told-bin"]) == ("yes", b"\xff\0")


@in_loop
async def test_a_handler_sees_the_time_that_remains() -> None:
    remaining: list[float | None] = []

    async def handle(request: bytes, context: Any) -> bytes:
        remaining.append(context.time_remaining())
        return request

    async with served(Ask=unary(handle)) as channel:
        ask = channel.unary_unary(path("Ask"))
        await ask(b"", timeout=1000)
        await ask(b"")
    assert remaining[0] is not None
    assert 1000 - LIMIT_S < remaining[0] < 1100  # clients round up
    assert remaining[1] is None


@in_loop
async def test_a_clock_that_is_set_changes_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handle(request: bytes, context: Any) -> bytes:
        hour_later = time.time() + 3600
        monkeypatch.setattr(time, "time", lambda: hour_later)
        left = context.time_remaining()
        monkeypatch.undo()
        return repr(left).encode()

    async with served(Ask=unary(handle)) as channel:
        assert 1000 - LIMIT_S < float(await channel.unary_unary(path("Ask"))(b"", timeout=1000)) < 1100


@in_loop
async def test_a_synchronous_client_is_answered_too() -> None:
    async with serving(Services(Echo=unary(echo))) as target:

        def ask() -> Any:
            with grpc.insecure_channel(target, [OWN_CONNECTION]) as channel:
                return channel.unary_unary(path("Echo"))(b"hello", timeout=LIMIT_S)

        assert await asyncio.to_thread(ask) == b"hello"


@in_loop
async def test_compressed_messages_are_understood() -> None:
    async with served(Echo=unary(echo)) as channel:
        ask = channel.unary_unary(path("Echo"))
        assert await ask(bytes(100_000), compression=grpc.Compression.Gzip) == bytes(100_000)


@in_loop
async def test_an_empty_message_is_a_message() -> None:
    async with served(Echo=unary(echo), Stream=stream(echo_all)) as channel:
        assert await channel.unary_unary(path("Echo"))(b"") == b""
        call = channel.stream_stream(path("Stream"))(iter([b"", b"a", b""]))
        assert [answer async for answer in call] == [b"", b"a", b""]


@pytest.mark.parametrize(
    ("details", "expected"),
    [("no such thing", "no such thing"), ("naïve 🙂 100%", "naïve 🙂 100%"), ("a\ud800b", "a?b"), ("", "")],
)
@in_loop
async def test_a_handler_ends_a_call_with_a_status(details: str, expected: str) -> None:
    async def handle(_: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("set", "1"),))
        await context.abort(grpc.StatusCode.NOT_FOUND, details)
        raise AssertionError("abort returned")

    async with served(Ask=unary(handle)) as channel:
        error = await refusal_of(channel.unary_unary(path("Ask"))(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, expected)
    assert dict(iter(error.trailing_metadata())) == {"set": "1"}


@in_loop
async def test_a_status_brings_metadata_of_its_own() -> None:
    async def handle(_: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("set", "1"),))
        await context.abort(grpc.StatusCode.ABORTED, "no", (("reason-bin", b"\xff"),))
        raise AssertionError("abort returned")

    async with served(Ask=unary(handle)) as channel:
        error = await refusal_of(channel.unary_unary(path("Ask"))(b""))
    assert dict(iter(error.trailing_metadata())) == {"reason-bin": b"\xff"}


@pytest.mark.parametrize("kind", ["unary", "answers", "stream"])
@in_loop
async def test_clients_try_again_what_was_refused_before_any_answer(kind: str) -> None:
    attempts = 0

    async def refuse(context: Any) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")

    async def answer_one(request: bytes, context: Any) -> bytes:
        await refuse(context)
        return request

    async def answer_many(_: Any, context: Any) -> AsyncIterator[bytes]:
        await refuse(context)
        yield b"hello"

    policy = {"maxAttempts": 5, "initialBackoff": "0.01s", "maxBackoff": "0.01s", "backoffMultiplier": 1,
              "retryableStatusCodes": ["UNAVAILABLE"]}  # fmt: skip
    config = json.dumps({"methodConfig": [{"name": [{"service": SERVICE}], "retryPolicy": policy}]})
    services = Services(unary=unary(answer_one), answers=answers(answer_many), stream=stream(answer_many))
    async with serving(services) as target, connected(target, ("grpc.service_config", config)) as channel:
        if kind == "unary":
            assert await channel.unary_unary(path(kind))(b"hello") == b"hello"
        elif kind == "answers":
            assert [answer async for answer in channel.unary_stream(path(kind))(b"")] == [b"hello"]
        else:
            assert [answer async for answer in channel.stream_stream(path(kind))(iter([b""]))] == [b"hello"]
    assert attempts == 3


@in_loop
async def test_a_refusal_is_one_frame() -> None:
    async def handle(_: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        raise AssertionError("abort returned")

    async with serving(Services(Ask=unary(handle))) as target:
        wire = await Wire.to(target)
        for number, method in ((1, "Ask"), (3, "Nothing")):
            wire.send(http2.call(number, path(method)))
            frames = await wire.until_answered(number)
            assert [frame[0] for frame in frames] == [http2.HEADERS]
        wire.drop()


@pytest.mark.parametrize("kind", ["unary", "answers", "stream"])
@in_loop
async def test_what_a_handler_raises_goes_to_the_log_and_not_to_the_client(
    kind: str, log: pytest.LogCaptureFixture
) -> None:
    async def fail(_: Any, __: Any) -> bytes:
        raise RuntimeError("secret")

    async def fail_later(_: Any, __: Any) -> AsyncIterator[bytes]:
        yield b"first"
        raise RuntimeError("secret")

    async with served(unary=unary(fail), answers=answers(fail_later), stream=stream(fail_later)) as channel:
        call: Any
        if kind == "unary":
            error = await refusal_of(call := channel.unary_unary(path(kind))(b""))
        else:
            call = channel.unary_stream(path(kind))(b"")
            assert await call.read() == b"first"
            error = await refusal_of(call.read())
        trailing = await call.trailing_metadata()
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "the server failed on this request; its log has the reason"
    assert not trailing
    (record,) = log.records
    assert record.getMessage() == f"{path(kind)} failed"
    assert record.exc_info
    assert str(record.exc_info[1]) == "secret"
    log.clear()


@pytest.mark.parametrize("answer", ["text", None])
@pytest.mark.parametrize("kind", ["unary", "stream"])
@in_loop
async def test_an_answer_that_is_not_bytes_is_a_failure(
    kind: str, answer: str | None, log: pytest.LogCaptureFixture
) -> None:
    async def mistake(_: bytes, __: Any) -> Any:
        return answer

    async def mistakes(_: Any, __: Any) -> AsyncIterator[Any]:
        yield answer

    async with served(unary=unary(mistake), stream=stream(mistakes)) as channel:
        call = channel.unary_unary if kind == "unary" else channel.stream_unary
        error = await refusal_of(call(path(kind))(b"" if kind == "unary" else iter([])))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert [record.getMessage() for record in log.records] == [f"{path(kind)} failed"]
    log.clear()


@in_loop
async def test_a_handler_whose_own_work_was_cancelled_ends_the_call() -> None:
    async def handle(_: bytes, __: Any) -> bytes:
        raise asyncio.CancelledError

    async with served(Ask=unary(handle)) as channel:
        ask = channel.unary_unary(path("Ask"))
        with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
            await ask(b"", timeout=LIMIT_S)


@pytest.mark.parametrize("method", [path("Nothing"), "/other.Service/Echo", "/", "/no", "/" + "a" * 5000])
@in_loop
async def test_unknown_methods_are_refused(method: str) -> None:
    async with served(Echo=unary(echo)) as channel:
        error = await refusal_of(channel.unary_unary(method)(b""))
        assert (error.code(), error.details()) == (grpc.StatusCode.UNIMPLEMENTED, "the server has no such method")
        assert await channel.unary_unary(path("Echo"))(b"a") == b"a"


@in_loop
async def test_a_path_that_is_not_utf8_is_refused_like_any_other() -> None:
    async with serving(Services(Echo=unary(echo))) as target:
        wire = await Wire.to(target)
        for number in range(1, 400, 2):  # more than core has been asked for
            wire.send(http2.call(number, b"/test.Serv\xd1ce/Echo"))
            ((_, _, _, headers),) = await wire.until_answered(number)
            assert b"no such method" in headers
        wire.send(http2.call(401, path("Echo")))
        assert len(await wire.until_answered(401)) == 3
        wire.drop()


@in_loop
async def test_a_message_beyond_the_limit_is_refused_unseen() -> None:
    calls = 0

    async def handle(request: bytes, _: Any) -> bytes:
        nonlocal calls
        calls += 1
        return request

    async with served(("grpc.max_receive_message_length", 1000), Ask=unary(handle)) as channel:
        refusals = (refusal_of(channel.unary_unary(path("Ask"))(bytes(1001))) for _ in range(100))
        for error in await asyncio.gather(*refusals):
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert calls == 0
        assert await channel.unary_unary(path("Ask"))(bytes(1000)) == bytes(1000)


@in_loop
async def test_an_answer_beyond_the_limit_ends_the_call() -> None:
    async def handle(_: bytes, __: Any) -> bytes:
        return bytes(1001)

    async with served(("grpc.max_send_message_length", 1000), Ask=unary(handle)) as channel:
        error = await refusal_of(channel.unary_unary(path("Ask"))(b""))
        assert error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)


@pytest.mark.parametrize("kind", ["unary", "answers"])
@in_loop
async def test_a_call_without_a_message_is_refused(kind: str) -> None:
    async with served(unary=unary(echo), answers=answers(echo_all)) as channel:
        error = await refusal_of(channel.stream_unary(path(kind))(iter([])))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "the call ended without a message; send one"


@in_loop
async def test_what_core_refuses_ends_the_call(log: pytest.LogCaptureFixture) -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Told(Unlimited):
        def release(self) -> None:
            loop.call_soon_threadsafe(over.set)

    async def handle(_: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"an answer"
        context._outbox.is_used = False  # so a second header goes out with the status, which core doesn't take

    services = Services(Answers=answers(handle))
    async with serving(services, admit=lambda _: Told()) as target, connected(target) as channel:
        call = channel.unary_stream(path("Answers"))(b"")
        assert await call.read() == b"an answer"
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        await over.wait()
    assert "gRPC core refused an operation of /test.Service/Answers: grpc_call_error 8" in log.text
    log.clear()
