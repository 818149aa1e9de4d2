"""`echo.py --port P`: a gRPC server that answers anything with nothing, to know what transport alone costs."""

import asyncio
import sys
from typing import Any

import grpc

PATH = "/echo.Echo/Echo"


class _Echo(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def service(self, details: Any) -> Any:
        async def answer(request: bytes, context: Any) -> bytes:
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


async def main() -> None:
    """Serves until it is killed."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Echo(),))
    port = server.add_insecure_port(f"127.0.0.1:{sys.argv[sys.argv.index('--port') + 1]}")
    await server.start()
    print(f"serving echo on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
