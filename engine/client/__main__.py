"""`python -m engine.client edit|encode|decode|sample|interpolate|info|health`: one task from a shell."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import tyro
from tyro.conf import FlagCreatePairsOff, OmitSubcommandPrefixes

from engine.client.cli.command import Command
from engine.client.cli.commands import Decode, Edit, Encode, Health, Info, Interpolate, Sample
from engine.command_line import REAL_PATHS, is_flag, program, tell_version, words_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command, by default the process's own; its exit code."""
    words = words_of(arguments)
    if tell_version(words):
        return 0
    with REAL_PATHS:
        command = _parsed(words)
    return command.execute()


def _parsed(words: list[str]) -> Command:
    """The command; its files may stand apart, before options and behind them, which tyro alone takes for unknown."""
    parse = partial(
        tyro.cli,
        Edit | Encode | Decode | Sample | Interpolate | Info | Health,
        args=words,
        prog=program("engine.client", "dfcvae"),
        description="One task for a server that `python -m engine` runs.",
        config=(OmitSubcommandPrefixes, FlagCreatePairsOff),
    )
    command: Command
    command, apart = parse(return_unknown_args=True)
    if isinstance(command, Edit | Encode) and not any(map(is_flag, apart)):
        return replace(command, paths=(*command.paths, *apart))
    if apart:
        parse()  # says that it doesn't know them, and ends the process
    return command


if __name__ == "__main__":
    sys.exit(main())
