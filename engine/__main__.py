"""`python -m engine --bundle BUNDLE`: the server's command line."""
# ruff: noqa: E402 - what comes before the other imports has to: they take a second, and gRPC reads its variables when it is imported.

import os
import signal
import sys

from engine.process.standard_streams import open_closed_streams

open_closed_streams()

# Until `serve` listens there is nothing to be ended in order, and bundles that are still to be read can wait for it.
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: os._exit(0))
signal.signal(signal.SIGHUP, signal.SIG_IGN)

# gRPC's core writes to stderr by itself, past the log and its format: a line for whatever rubbish a client sends.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import asyncio
from contextlib import suppress
from typing import NoReturn

from engine.command_line import tell_version
from engine.config import load_config
from engine.errors import StartupError
from engine.proof.opening import open_proven
from engine.server import StuckError, serve
from engine.telemetry import logs

# Between two batches a compute thread needs the interpreter. The event loop, which is never idle under load, gives it
# up only when asked to, and Python asks after 5 ms: as long as a batch.
_SWITCH_INTERVAL_S = 0.0005


def main() -> int:
    """Runs the server; 0 after an orderly end, 1 when the backend was stuck at the end, 2 when it can't start."""
    try:
        if tell_version(sys.argv[1:]):
            return 0
        config = load_config(sys.argv[1:])
        if config.dry_run:
            try:
                print(config.to_json(), flush=True)
            except (OSError, ValueError) as error:
                raise StartupError(f"stdout can't be written ({error})") from None
            return 0
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        logs.set_up(config.log_level, config.log_format)
        asyncio.run(serve(config, lambda bundle: open_proven(bundle, config.threads, config.device)))
    except StartupError as error:
        logs.flush()
        with suppress(OSError, ValueError):
            print(f"error: {error}", file=sys.stderr)
        return 2
    except StuckError:  # it is in the log
        return 1
    return 0


def run() -> NoReturn:
    """Runs the server, and ends the process with its exit code."""
    code = main()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    # Not `logging.shutdown`, which flushes stderr itself, and would wait for whoever reads it.
    logs.flush()
    # Python's own end would tear down native libraries under the threads that still load or compute with them.
    os._exit(code)


if __name__ == "__main__":
    run()
