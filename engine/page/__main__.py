"""`python -m engine.page --target HOST:PORT`: a page with sliders, for browsers."""

import asyncio
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import UseAppendAction, arg

from engine.client import AsyncClient
from engine.client.arguments import whole
from engine.client.cli.command import ServerOptions, report
from engine.client.cli.outputs import UsageError
from engine.command_line import program, read_flags
from engine.page.session import Server
from engine.process.address import is_local, target_of

_FAREWELL_S = 1
_UPLOAD_S = 300  # behind a photo that is on its way a ping's answer waits; a slow network takes minutes


@dataclass(frozen=True, kw_only=True)
class Page(ServerOptions):
    """A page for browsers: a photo goes in, and every attribute of the model has a slider.

    The page asks the server that `python -m engine` runs. Example: python -m engine.page --target localhost:50051
    """

    timeout_s: float = 10.0
    """Deadline of each call, seconds, above 0."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface. The page asks nobody who they are, and is not encrypted."""

    port: int = 8080
    """TCP port; 0 picks a free one."""

    allow_host: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME")] = ()
    """Name that browsers reach the page by, for example behind a proxy. Repeat for several. Addresses, localhost and
    this machine's name are known."""

    max_visitors: int = 64
    """Pages that may be open at once."""

    max_photo_bytes: int = 16 * 2**20
    """Largest file of a photo, bytes; pages make large photos smaller before they send them."""


def main() -> int:
    """Serves the page; 0 after its end, 2 for bad input."""
    page = read_flags(Page, program("engine.page", "dfcvae-page"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        whole("--port", page.port, 0, 65535)
        whole("--max-visitors", page.max_visitors, 1, 65536)
        whole("--max-photo-bytes", page.max_photo_bytes, 65536, 2**28)
        asyncio.run(_serve(page))
    except (ValueError, OSError) as error:
        return report(error)
    except KeyboardInterrupt:
        pass
    return 0


async def _serve(page: Page) -> None:
    try:
        import uvicorn  # noqa: PLC0415 - an extra

        from engine.page.app import MAX_HEADER_BYTES, create_app  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UsageError(f"the page needs {error.name}, which is not installed; pip install 'dfc-vae[page]'") from None
    client = page.connect(AsyncClient, retries=0)  # pages ask again themselves
    server = Server(client, page.timeout_s, page.max_photo_bytes)
    app = create_app(server, (page.host, *page.allow_host), page.max_visitors)
    config = uvicorn.Config(
        app,
        log_level="warning",
        ws="websockets-sansio",
        ws_max_size=page.max_photo_bytes + MAX_HEADER_BYTES,
        ws_per_message_deflate=False,  # pixels of one face are compressed for longer than they travel
        ws_ping_timeout=_UPLOAD_S,
        timeout_graceful_shutdown=_FAREWELL_S,
    )
    with _listening(page.host, page.port) as listener:
        port = listener.getsockname()[1]
        if not is_local(page.host):
            print(
                f"note: --host {page.host}: whoever reaches this machine can use the page, and photos travel to it "
                "unencrypted; it has no login",
                file=sys.stderr,
            )
        print(f"page on http://{target_of(page.host, port)}/ for the server at {page.target}", flush=True)
        await uvicorn.Server(config).serve([listener])


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", None) or "no name of a host").partition(" (")[0]
        raise UsageError(f"can't listen on {host}:{port} ({reason}); choose another --host or --port") from None


if __name__ == "__main__":
    sys.exit(main())
