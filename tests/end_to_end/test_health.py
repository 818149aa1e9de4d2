"""What health tells, whoever else watches it."""

from pathlib import Path
from typing import Any

import grpc
from gates import gated_server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from servers import server_of
from serving import http2
from wires import NO_WINDOW, Wire, in_loop, refusal_of

WATCH = b"/grpc.health.v1.Health/Watch"
SERVICES = ("dfcvae.v1.LatentEngine", "inference.GRPCInferenceService", "grpc.reflection.v1alpha.ServerReflection")
STATUS = health_pb2.HealthCheckResponse


async def deaf_watcher(target: str) -> Wire:
    """Watches, and takes not a byte of what it is told."""
    wire = await Wire.to(target)
    wire.send(NO_WINDOW)
    await wire.until_pong()
    wire.send(http2.call(1, WATCH))
    await wire.until_pong()
    return wire


async def statuses_of(watch: Any) -> list[int]:
    statuses = []
    while (answer := await watch.read()) is not grpc.aio.EOF:
        statuses.append(answer.status)
    return statuses


@in_loop
async def test_a_watcher_that_does_not_read_holds_up_nobody(tiny_bundle: Path, tmp_path: Path) -> None:
    with server_of(tiny_bundle, tmp_path, "--grace-s", "3600") as server:
        deaf = [await deaf_watcher(server.target) for _ in range(2)]
        async with grpc.aio.insecure_channel(server.target) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == STATUS.SERVING
            server.terminate()
            assert await statuses_of(watch) == [STATUS.NOT_SERVING]
        assert server.wait() == 0
        for wire in deaf:
            wire.drop()


@in_loop
async def test_services_are_known_by_name(tiny_bundle: Path, tmp_path: Path) -> None:
    with gated_server(tiny_bundle, tmp_path) as gate:
        async with grpc.aio.insecure_channel(gate.server.target) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for name in ("", *SERVICES):
                assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == STATUS.SERVING
            unknown = health_pb2.HealthCheckRequest(service="no.such.Service")
            assert (await refusal_of(stub.Check(unknown))).code() is grpc.StatusCode.NOT_FOUND
            watch = stub.Watch(unknown)
            assert (await watch.read()).status == STATUS.SERVICE_UNKNOWN
            gate.server.terminate()
            assert await statuses_of(watch) == []
        assert gate.server.wait() == 0
