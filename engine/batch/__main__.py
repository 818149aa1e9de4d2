"""`python -m engine.batch IN_FOLDER OUT.parquet --target HOST:PORT`: encodes every image of a folder."""

import sys

from engine.batch.encode_folder import EncodeFolder
from engine.command_line import program, read_flags


def main() -> int:
    """Runs the command; its exit code."""
    return read_flags(EncodeFolder, program("engine.batch", "dfcvae-batch")).execute()


if __name__ == "__main__":
    sys.exit(main())
