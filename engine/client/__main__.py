"""`python -m engine.client edit|encode|decode|sample|interpolate|info|health`: one task from a shell."""

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, OmitSubcommandPrefixes, subcommand

from engine.client.cli import commands
from engine.client.cli.command import Command
from engine.command_line import REAL_PATHS, tell_version

Commands = (
    Annotated[commands.Edit, subcommand("edit")]
    | Annotated[commands.Encode, subcommand("encode")]
    | Annotated[commands.Decode, subcommand("decode")]
    | Annotated[commands.Sample, subcommand("sample")]
    | Annotated[commands.Interpolate, subcommand("interpolate")]
    | Annotated[commands.Info, subcommand("info")]
    | Annotated[commands.Health, subcommand("health")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command, by default the process's own; its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if tell_version(words):
        return 0
    with REAL_PATHS:
        command: Command = tyro.cli(
            Commands,
            args=words,
            prog="python -m engine.client",
            description="One task for a server that `python -m engine` runs.",
            config=(OmitSubcommandPrefixes, FlagCreatePairsOff),
        )
    return command.execute()


if __name__ == "__main__":
    sys.exit(main())
