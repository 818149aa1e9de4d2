"""gRPC core, as grpcio's own servers use it, and who takes its events.

The only module that knows `grpc._cython`, which is no public interface. What is used of it is the same in all versions
that pyproject.toml allows; tests serve with the oldest of them and with the lock's.

The queue's thread takes core's events while the event loop has nothing to do. Once it has called the loop it steps
aside, and the loop takes what else comes until there is nothing left: the two would only wait for each other at the
interpreter, several times a call.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import grpc
from grpc._cython import cygrpc

logger = logging.getLogger(__name__)

# A tag goes through core beside an operation, and comes back with what became of it: whoever takes the event, the
# queue's thread or the event loop, calls it with the event.
Tag = Callable[[Any], None]
Metadata = Sequence[tuple[str, str | bytes]] | None

INSTALL = "pip install 'grpcio>=1.72.2,<1.86'"
"""The versions that pyproject.toml allows."""

# Calls that core may hand over before this process asks for more: so few that a crowd's messages are taken, and their
# room is free again, before many more calls need some.
_CALLS_ASKED_FOR = 16
_NO_FLAGS = 0
# Core's deadline of calls without one is the last second of 63 bits; clients can't name one in half of that.
_ENDLESS_S = 2.0**62
# Events that the event loop takes at once, before it does what they ask for.
_EVENTS_AT_ONCE = 128
# After the server's end, operations of calls that were cancelled come back within this time of one another.
_LAST_EVENTS_S = 0.05
_DESTROY_S = 2.0
# The event loop, which was to take events in place of the queue's thread, is held up when it isn't through by then.
_HELD_UP_S = 0.01
# Core returns its errors, as numbers, and doesn't raise them.
_CALL_ERROR = "grpc_call_error"


class CoreError(RuntimeError):
    """Raise when core refuses to start an operation; its tag is never called then."""


class Core:
    """Core's server with its completion queue, and the thread that waits for it; gives new calls to `arrived`.

    Construct it inside a running event loop.
    """

    def __init__(self, options: Sequence[tuple[str, int]], arrived: Callable[["CoreCall"], None]) -> None:
        self._arrived = arrived
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(tuple(options), False)
        self._server.register_completion_queue(self._queue)
        self._thread = threading.Thread(target=self._run, name="grpc-queue", daemon=True)
        self._taking = threading.Lock()  # whoever has it takes events: tags are called one after the other
        self._resumed = threading.Event()  # the queue's thread is to take them
        self._resumed.set()
        self._loop = asyncio.get_running_loop()
        self._work: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._called = False  # the event loop is at its turns, or about to be
        self._loop_takes_events = False  # meanwhile
        self._ending = False
        self._ended: Callable[[], None] | None = None

    def listen(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        """Takes a port and gives its number; 0 where it can't be had."""
        own = None if credentials is None else credentials._credentials
        return int(self._server.add_http2_port(address.encode(), own))

    def start(self) -> None:
        """Takes calls.

        Raises:
            CoreError: When core doesn't.
        """
        self._server.start()
        for _ in range(_CALLS_ASKED_FOR):
            self._ask_for_call()
        self._thread.start()

    def shutdown(self, ended: Callable[[], None]) -> None:
        """Takes no more connections and calls; `ended` is called on the event loop when all calls are over."""

        def end(_: Any) -> None:
            self._ended = ended

        self._ending = True
        self._server.shutdown(self._queue, end)

    def post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Has a function called on the event loop, from any thread; calls are kept in their order."""
        self._work.append((function, arguments))
        if not self._called:
            self._call_loop()

    def cancel_calls(self) -> None:
        """Cancels the calls that are left."""
        self._server.cancel_all_calls()

    def close(self) -> None:
        """Frees the port and the thread, after the end."""
        self._thread.join()
        # The port is free already. Core has been seen to wait without end here when a rain of signals interrupted it.
        destroying = threading.Thread(target=self._server.destroy, name="grpc-destroy", daemon=True)
        destroying.start()
        destroying.join(_DESTROY_S)

    def _call_loop(self) -> None:
        # Set first: the event loop may be through before the next lines end.
        self._called = True
        if self._loop_takes_events:
            self._resumed.clear()
        with suppress(RuntimeError):  # the event loop is closed, and nobody waits any more
            self._loop.call_soon_threadsafe(self._take_turn)

    def _take_turn(self, before: int = 0) -> None:
        """On the event loop: takes events, and does what was posted; again and again while there is any."""
        taken = self._take_events() if self._loop_takes_events else False
        posted = len(self._work)
        for _ in range(posted):
            function, arguments = self._work.popleft()
            try:
                function(*arguments)
            except Exception:
                logger.exception("a call could not be begun or ended")
        if self._loop_takes_events and (taken or posted):
            self._loop.call_soon(self._take_turn, before + posted)
            return
        self._resumed.set()
        # Not for one call at a time: the queue's thread waits for its next event by then.
        self._loop_takes_events = before + posted > 1
        self._called = False
        if self._work:  # posted meanwhile, by one who saw that the loop was called
            self._call_loop()

    def _take_events(self) -> bool:
        """Takes events that are there, unless the queue's thread is at it; whether there may be more."""
        self._resumed.clear()  # again: that thread goes on by itself when it has waited long
        if not self._taking.acquire(blocking=False):
            return False
        try:
            taken = 0
            while taken < _EVENTS_AT_ONCE and self._ended is None and self._take_event(0.0):
                taken += 1
            return taken > 0
        finally:
            self._taking.release()

    def _ask_for_call(self) -> None:
        try:
            error = self._server.request_call(self._queue, self._queue, self._take_call)
        except ValueError:
            if not self._ending:
                raise
            return
        if error:
            raise CoreError(f"gRPC core refused to take calls: {_CALL_ERROR} {error}")

    def _take_call(self, event: Any) -> None:
        if event.success:
            try:
                self._ask_for_call()
            finally:
                self._arrived(CoreCall(event))

    def _run(self) -> None:
        while self._ended is None:
            if not self._resumed.wait(_HELD_UP_S):
                self._resumed.set()
            with self._taking:
                if self._ended is None:
                    self._take_event()
        # Handlers may still wait for operations, and nobody else brings them.
        while self._take_event(time.time() + _LAST_EVENTS_S):
            pass
        self.post(self._ended)

    def _take_event(self, deadline: float | None = None) -> bool:
        """Waits for an event, and lets it go: one of a call whose connection has gone can keep core busy."""
        try:
            event = self._queue.poll(deadline)
            if event.tag is None:
                return False
            event.tag(event)
        except Exception:
            logger.exception("an event of gRPC core failed")
        return True


class CoreCall:
    """A call, as core knows it. Its operations may be started on any thread.

    An operation that core refuses raises CoreError and cancels the call: whoever waits, on either side, hears of its
    end.
    """

    __slots__ = ("_call", "deadline", "metadata", "path")

    def __init__(self, event: Any) -> None:
        self._call = event.call
        self.path: str = event.call_details.method.decode(errors="replace")
        # Values of keys that end in "-bin" are bytes.
        self.metadata: tuple[tuple[str, str | bytes], ...] = event.invocation_metadata
        deadline: float = event.call_details.deadline  # seconds since 1970
        # By a clock that nobody sets: streams are open for hours.
        self.deadline = deadline - time.time() + time.monotonic() if deadline < _ENDLESS_S else math.inf

    def receive_close(self, tag: Tag) -> None:
        """Waits for the end of the call; see `was_cancelled`."""
        self._start((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), tag)

    def receive_message(self, tag: Tag) -> None:
        """Waits for the next message; see `message_of`."""
        self._start((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), tag)

    def send(self, tag: Tag, *, header: bool, message: bytes | None) -> None:
        """Sends the header where it is to go first, and a message."""
        self._start(_operations(header, message), tag)

    def end(
        self, tag: Tag, code: grpc.StatusCode, details: str, trailing: Metadata, *, header: bool, message: bytes | None
    ) -> None:
        """Sends the header where it is to go first, a last message if there is one, and the status.

        Header and status without a message go out as one, which tells clients that they may try again.
        """
        self._start((*_operations(header, message), _status(code, details, trailing)), tag)

    def refuse(self, code: grpc.StatusCode, details: str, trailing: Metadata = None) -> None:
        """Ends a call that nobody has listened to, all at once."""
        operations = (
            *_operations(True, None),
            cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),
            _status(code, details, trailing),
        )
        self._start(operations, lambda _: None)

    def cancel(self) -> None:
        """Ends a call that can't be answered."""
        self._call.cancel()

    def peer(self) -> str:
        """The client's address in gRPC's form, for example ipv4:127.0.0.1:50051."""
        return str(self._call.peer().decode(errors="replace"))

    def auth_context(self) -> dict[str, list[bytes]]:
        """What TLS knows about the client."""
        properties = cygrpc.auth_context(self._call) or {}
        return {key.decode(errors="replace"): value for key, value in properties.items()}

    def _start(self, operations: Sequence[Any], tag: Tag) -> None:
        if error := self._call.start_server_batch(operations, tag):
            self.cancel()
            raise CoreError(f"gRPC core refused an operation of {self.path}: {_CALL_ERROR} {error}")


def was_cancelled(event: Any) -> bool:
    """Whether a call ended before its status: the client or its connection has gone, or the deadline passed."""
    return bool(event.batch_operations[0].cancelled())


def message_of(event: Any) -> bytes | None:
    """The message that was waited for; None where there are no more, or the call is over."""
    message: bytes | None = event.batch_operations[0].message()
    return message


def _status(code: grpc.StatusCode, details: str, trailing: Metadata) -> Any:
    return cygrpc.SendStatusFromServerOperation(trailing, code.value[0], details.encode(errors="replace"), _NO_FLAGS)


def _operations(header: bool, message: bytes | None) -> list[Any]:
    operations: list[Any] = []
    if header:
        operations.append(cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS))
    if message is not None:
        operations.append(cygrpc.SendMessageOperation(message, _NO_FLAGS))
    return operations
