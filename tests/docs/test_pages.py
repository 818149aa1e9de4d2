"""README and docs/ against the code: commands, flags, extras, files, links and Python that they name are there."""

import contextlib
import functools
import importlib
import importlib.util
import io
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from servers import ROOT

from engine.config import load_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
TEXTS = {name: path.read_text() for name, path in PAGES.items()}
FOLDERS = "trainer|export|engine|framing|protos|quickstart|benchmarks|tests|docs|deploy"
HAVE_SUBCOMMANDS = ("trainer", "engine.client", "benchmarks/gpu.py")
OTHERS = {"--no-deps"}
"""Flags of other people's commands."""


class Command(NamedTuple):
    """What `python` is to run: a module or a script, and perhaps a subcommand."""

    target: str
    subcommand: str = ""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def lines(text: str) -> Iterator[list[str]]:
    """The words of each line that a page has for a shell."""
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                if words := shlex.split(part, comments=True):
                    yield words


def commands(text: str) -> dict[Command, set[str]]:
    """The commands of this project on a page, each with the flags that it is given somewhere there."""
    found: dict[Command, set[str]] = {}
    for words in lines(text):
        if "-m" in words and words[0] in ("python", "torchrun"):
            rest = words[words.index("-m") + 1 :]
        elif words[0] == "python":
            rest = words[1:]
        else:
            continue
        if not re.match(rf"({FOLDERS})\b", rest[0]):
            continue
        command = Command(rest[0], rest[1]) if rest[0] in HAVE_SUBCOMMANDS else Command(rest[0])
        flags = {word.partition("=")[0] for word in rest if word.startswith("--")}
        found.setdefault(command, set()).update(flags)
    return found


COMMANDS: dict[Command, set[str]] = {}
for _text in TEXTS.values():
    for _command, _flags in commands(_text).items():
        COMMANDS.setdefault(_command, set()).update(_flags)


def main_of(target: str) -> Callable[[], object]:
    """What a command runs."""
    if target == "engine":  # whose module takes the signals of the process
        return lambda: load_config(sys.argv[1:], {})
    name = Path(target).stem if "/" in target else target
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"there is no {target}"
    main: Callable[[], object] = importlib.import_module(
        f"{name}.__main__" if spec.submodule_search_locations else name
    ).main
    return main


@functools.cache
def help_of(command: Command) -> str:
    """What a command says to --help; in this process, as most of the time would go into starting one."""
    arguments = [command.subcommand, "--help"] if command.subcommand else ["--help"]
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "argv", [command.target, *arguments])
        with pytest.raises(SystemExit) as ended:
            main_of(command.target)()
    assert ended.value.code in (0, None)
    return output.getvalue()


def flags_of(command: Command) -> set[str]:
    return {"--help", *re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", help_of(command))}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_has_the_flags_that_pages_give_it(command: Command) -> None:
    assert flags_of(command)
    assert not COMMANDS[command] - flags_of(command)


@pytest.mark.parametrize("name", PAGES)
def test_commands_can_be_run_one_after_the_other(name: str) -> None:
    """The client replaces no file."""
    made = [
        words[-1] for words in lines(TEXTS[name]) if words[:3] == ["python", "-m", "engine.client"] and "." in words[-1]
    ]
    assert len(made) == len(set(made))


@pytest.mark.parametrize("name", PAGES)
def test_flags_in_sentences_are_flags_of_some_command(name: str) -> None:
    known = OTHERS.union(*map(flags_of, COMMANDS))
    prose = re.sub(r"^```.*?^```$", "", TEXTS[name], flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"(?<![\w.-])--[a-z][a-z0-9-]*", prose))
    assert not named - known


@pytest.mark.parametrize("name", PAGES)
def test_extras_are_in_pyproject(name: str) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for group in re.findall(r'"\.\[([\w,-]+)\]"', TEXTS[name]) for extra in group.split(",")}
    assert not named - set(known)


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_are_there(name: str) -> None:
    named = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", TEXTS[name]))
    named |= {words[0] for words in lines(TEXTS[name]) if re.match(rf"({FOLDERS})/", words[0])}
    assert not [path for path in named if not (ROOT / path).exists()]


def anchors(text: str) -> set[str]:
    """The places that a page can be linked at, as GitHub names them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (PAGES[name].parent / path).resolve() if path else PAGES[name]
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert not broken


def test_every_page_can_be_reached_from_the_readme() -> None:
    assert {Path(link).name for link in re.findall(r"\(docs/(\w+\.md)", TEXTS["README.md"])} == set(PAGES) - {
        "README.md"
    }


@pytest.mark.parametrize("name", PAGES)
def test_what_is_imported_from_python_is_there(name: str) -> None:
    for block in blocks(TEXTS[name], "python"):
        code = textwrap.dedent(block)
        compile(code, name, "exec")
        exec("\n".join(line for line in code.splitlines() if line.startswith(("import ", "from "))), {})
