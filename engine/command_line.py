"""What the command lines of all programs have in common."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from engine.process.standard_streams import open_closed_streams
from engine.version import NAME, version_here

Flags = TypeVar("Flags")

REAL_PATHS = ConstructorRegistry()
"""`with REAL_PATHS:` around `tyro.cli` has it refuse "" for a path, which pathlib takes for the current folder."""


def program(module: str, script: str) -> str:
    """How to call a program again: as it was, by its console script or by its module, which a folder may hide."""
    return script if Path(sys.argv[0]).name == script else f"python -m {module}"


def words_of(arguments: Sequence[str] | None) -> list[str]:
    """The words of a command line, by default the process's own; its closed standard streams are open from then on."""
    open_closed_streams()
    return sys.argv[1:] if arguments is None else list(arguments)


def is_flag(word: str) -> bool:
    """Whether a word is read as a flag; "-" alone is a pipe."""
    return word.startswith("-") and word != "-"


def tell_version(arguments: Sequence[str]) -> bool:
    """Prints the version where a command line asks for nothing else; whether it did."""
    if list(arguments) != ["--version"]:
        return False
    known = version_here()
    print(f"{NAME} {known}" if known else f"{NAME}, not installed: run from its sources")
    return True


def last_given(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag that must be known before the others are read; where it is given twice, the last one counts.

    None where it isn't given, and "" where its value is missing.
    """
    found = None
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == flag:
            found = value if equals else "".join(arguments[position + 1 : position + 2])
    return found


def read_flags(
    flags: type[Flags], program: str, description: str | None = None, arguments: Sequence[str] | None = None
) -> Flags:
    """The flags of a command line, by default the process's own; where it asks for the version, that is the end."""
    words = words_of(arguments)
    if tell_version(words):
        raise SystemExit(0)
    with REAL_PATHS:
        return tyro.cli(
            flags, prog=program, description=description, args=words, config=(tyro.conf.FlagCreatePairsOff,)
        )


@REAL_PATHS.primitive_rule
def _path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=_real_path,
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    )


def _real_path(words: list[str]) -> Path:
    if not words[0]:
        raise ValueError('the path is empty, ""; is a variable of your shell not set?')
    path = Path(words[0])
    # "./-x" is "-x" by now, which other commands would take for a flag.
    return path.absolute() if is_flag(str(path)) else path
