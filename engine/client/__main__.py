"""`python -m engine.client edit|encode|decode|sample|interpolate|info|health`: one task from a shell."""

import os
import sys
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, OmitSubcommandPrefixes, subcommand

from engine.client.cli import commands
from engine.client.cli.command import Command
from engine.client.cli.outputs import UsageError
from engine.client.errors import ClientError
from engine.version import tell_version

Commands = (
    Annotated[commands.Edit, subcommand("edit")]
    | Annotated[commands.Encode, subcommand("encode")]
    | Annotated[commands.Decode, subcommand("decode")]
    | Annotated[commands.Sample, subcommand("sample")]
    | Annotated[commands.Interpolate, subcommand("interpolate")]
    | Annotated[commands.Info, subcommand("info")]
    | Annotated[commands.Health, subcommand("health")]
)


def main() -> int:
    """Runs one command.

    Returns:
        0 when it worked, 2 for bad input, 1 when the server failed or can't be reached, 130 after Ctrl-C.
    """
    if tell_version(sys.argv[1:]):
        return 0
    command: Command = tyro.cli(
        Commands,
        prog="python -m engine.client",
        description="One task for a server that `python -m engine` runs.",
        config=(OmitSubcommandPrefixes, FlagCreatePairsOff),
    )
    try:
        with command.client() as client:
            code = command.run(client)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads the output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ClientError, UsageError, ValueError, OSError) as error:
        return commands.report(error)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
