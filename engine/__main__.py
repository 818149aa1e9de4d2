"""`python -m engine --bundle BUNDLE`: the server's command line."""

import asyncio
import sys

from engine.backends import open_backend
from engine.config import load_config
from engine.errors import StartupError
from engine.server import serve
from engine.telemetry import logs

# Between two batches the compute thread needs the interpreter, and the event loop, which is never idle under load,
# gives it up only when asked to: Python asks after 5 ms, most of a batch. A tenth took 8 % off such a batch's turn.
_SWITCH_INTERVAL_S = 0.0005


def main() -> int:
    """Runs the server; 0 after an orderly end, 2 when it can't start."""
    try:
        config = load_config(sys.argv[1:])
        if config.dry_run:
            print(config.to_json())
            return 0
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        logs.set_up(config.log_level, config.log_format)
        asyncio.run(serve(config, lambda bundle: open_backend(bundle, config.threads)))
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
