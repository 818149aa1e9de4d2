"""The real server, one of whose libraries forks: `forking_server.py FOLDER --bundle ...`.

The fork writes its process id to FOLDER/fork and waits.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

from engine.backends import Backend, open_backend
from engine.bundle import Bundle
from engine.config import load_config
from engine.server import serve
from engine.telemetry import logs


def main() -> None:
    folder, *arguments = sys.argv[1:]
    config = load_config(arguments)
    logs.set_up(config.log_level, config.log_format)

    def open_and_fork(bundle: Bundle) -> Backend:
        """From the thread that opens bundles, as a library does while it is imported."""
        if os.fork() == 0:
            unfinished = Path(folder) / "unfinished"
            unfinished.write_text(str(os.getpid()))
            unfinished.rename(Path(folder) / "fork")
            time.sleep(600)
            os._exit(1)
        return open_backend(bundle)

    asyncio.run(serve(config, open_and_fork))


if __name__ == "__main__":
    main()
