"""`python -m engine --bundle BUNDLE`: the server's command line."""

import asyncio
import json
import logging
import sys
from dataclasses import asdict

import tyro

from engine.backends import open_backend
from engine.bundle import Bundle
from engine.errors import StartupError
from engine.server import ServerConfig, serve


def main() -> int:
    """Runs the server; 0 after an orderly end, 2 when it can't start."""
    try:
        config = tyro.cli(ServerConfig, prog="python -m engine", config=(tyro.conf.FlagCreatePairsOff,))
        if config.dry_run:
            print(json.dumps(asdict(config), indent=2, default=str))
            return 0
        logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        bundle = Bundle.load(config.bundle)
        asyncio.run(serve(config, bundle, open_backend(bundle, config.threads)))
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
