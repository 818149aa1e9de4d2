"""Where calls come in: each is judged by what comes before its message; of one that is refused no more is taken."""

import itertools
import re
import secrets
from functools import lru_cache

from engine.calls.access import name_in_certificate
from engine.calls.admission import Admission, Guards, Ticket
from engine.calls.details import Refusal, refusal
from engine.errors import EngineError
from engine.telemetry.logs import CallLog
from engine.telemetry.metrics import MethodFigures
from engine.transport.core import CoreCall

_SANE_ID = re.compile(r"[A-Za-z0-9._:/=+-]{1,128}")

# A name for calls that come without one, which no call of another server has.
_ids = itertools.count(1)
_id_prefix = secrets.token_hex(5)

# Health answers whatever else is held, and everyone: it has room of its own. Its messages are a few bytes, but a client
# may send others.
_PROBES = 1024
_PROBE_MESSAGES = 8


class Door:
    """Lets calls in or refuses them. Construct it inside a running event loop.

    Args:
        admission: Counts calls.
        log: Has a line for each that is refused. Used by who takes core's events only.

    Attributes:
        methods: Figures of the methods that calls need leave for, by path. Others are probes of the server's health.
        streams: Paths of those that are streams.
    """

    def __init__(self, admission: Admission, log: CallLog) -> None:
        self._admission = admission
        self._log = log
        size = admission.guards.max_message_bytes
        self._probes = Admission(Guards(max_calls=_PROBES, max_bytes=_PROBE_MESSAGES * size, max_message_bytes=size))
        self._probes.open()
        self.methods: dict[str, MethodFigures] = {}
        self.streams: set[str] = set()

    def admit(self, call: CoreCall) -> Ticket | Refusal:
        """What a call holds from now on, or what it is ended with; for `engine.transport.Server`."""
        client, method = host_of(call.peer()), self.methods.get(call.path)
        if method is None:
            try:
                return self._probes.enter(client)
            except EngineError as error:
                return refusal(error, "")
        request_id, authorization = "", None
        for key, value in call.metadata:
            if key == "x-request-id" and isinstance(value, str) and _SANE_ID.fullmatch(value):
                request_id = value
            elif key == "authorization":
                authorization = value
        request_id = request_id or f"{_id_prefix}-{next(_ids):x}"
        guards = self._admission.guards
        try:
            if guards.tokens is not None:
                client = guards.tokens.name_of(authorization)
            elif guards.certificates and (name := name_in_certificate(call.auth_context())):
                client = name
            ticket = self._admission.enter(client, call.path, stream=call.path in self.streams)
        except EngineError as error:
            found = refusal(error, request_id)
            method.refused(found.code.name)
            self._log.failed(method.name, found.code.name, client, 0.0, found.message)
            return found
        ticket.request_id = request_id
        if guards.tokens is not None:
            ticket.authorization, ticket.version = authorization, guards.tokens.version
        return ticket


@lru_cache(maxsize=4096)
def host_of(peer: str) -> str:
    """The host in gRPC's name of a peer, for example ipv4:127.0.0.1:50051 or ipv6:%5B::1%5D:50051."""
    kind, _, address = peer.partition(":")
    return address.rpartition(":")[0] if kind.startswith("ip") else peer
