"""`python -m engine.batch IN_FOLDER OUT.parquet --target HOST:PORT`: encodes every image of a folder."""

import sys

import tyro

from engine.batch.encode_folder import EncodeFolder
from engine.command_line import REAL_PATHS, tell_version


def main() -> int:
    """Runs the command; its exit code."""
    if tell_version(sys.argv[1:]):
        return 0
    with REAL_PATHS:
        command = tyro.cli(EncodeFolder, prog="python -m engine.batch", config=(tyro.conf.FlagCreatePairsOff,))
    return command.execute()


if __name__ == "__main__":
    sys.exit(main())
