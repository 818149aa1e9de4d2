"""`python -m engine.client edit|encode|decode|info`: one call from a shell."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tyro.conf import OmitSubcommandPrefixes, Positional, UseAppendAction, arg, subcommand

from engine.client import Client, ClientError, FileFormat

_FORMATS: dict[str, FileFormat] = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_CALLERS_FAULT = ("INVALID_ARGUMENT", "NOT_FOUND")


class UsageError(Exception):
    """Raise when the command line asks for something that can't be done."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """What every command has."""

    target: str = "127.0.0.1:50051"
    """HOST:PORT of the server."""

    timeout_s: float = 60.0
    """Deadline of the call, seconds."""


@dataclass(frozen=True, kw_only=True)
class Edit(Call):
    """Edits the face in an image file."""

    input: Annotated[Positional[Path], arg(metavar="IN")]
    """JPEG, PNG or WebP file with a face, framed as the training images were."""

    output: Annotated[Positional[Path], arg(metavar="OUT")]
    """Image file to write; its suffix chooses .png, .jpg or .webp."""

    settings: Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="NAME=STRENGTH")]
    """Attribute and strength, for example Smiling=1.5; negative takes it away. Repeat for several."""

    keep: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME")] = ()
    """Attribute that must stay as it is. Repeat for several."""

    def run(self, client: Client) -> None:
        """Sends the file and writes the result."""
        edits = [_parse_setting(setting) for setting in self.settings]
        if not edits:
            raise UsageError("nothing to do: give at least one --set NAME=STRENGTH, for example --set Smiling=1.5")
        file_format = _format_of(self.output)
        (file,) = client.edit_files([self.input.read_bytes()], edits, self.keep, file_format)
        self.output.write_bytes(file)


@dataclass(frozen=True, kw_only=True)
class Encode(Call):
    """Writes the latent (posterior mean) of an image file."""

    input: Annotated[Positional[Path], arg(metavar="IN")]
    """JPEG, PNG or WebP file with a face, framed as the training images were."""

    output: Annotated[Positional[Path], arg(metavar="OUT")]
    """.npy file to write, float32 [1, latent_dim]."""

    def run(self, client: Client) -> None:
        """Sends the file and writes its latent."""
        if self.output.suffix != ".npy":
            raise UsageError(f"{self.output} must end in .npy")
        np.save(self.output, client.encode([self.input.read_bytes()]).mu)


@dataclass(frozen=True, kw_only=True)
class Decode(Call):
    """Writes the images of latents."""

    input: Annotated[Positional[Path], arg(metavar="IN")]
    """.npy file, float32 [N, latent_dim]."""

    output: Annotated[Positional[Path], arg(metavar="OUT")]
    """Image file to write, .png, .jpg or .webp; several are numbered: face.png, face-1.png, face-2.png."""

    def run(self, client: Client) -> None:
        """Sends the latents and writes their images."""
        file_format = _format_of(self.output)
        try:
            latents = np.load(self.input, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise UsageError(f"{self.input} is not a .npy file: {error}") from None
        for index, file in enumerate(client.decode_files(latents, file_format)):
            numbered = self.output.with_stem(f"{self.output.stem}-{index}") if index else self.output
            numbered.write_bytes(file)


@dataclass(frozen=True, kw_only=True)
class Info(Call):
    """Prints what the server serves, as JSON."""

    def run(self, client: Client) -> None:
        """Asks and prints."""
        print(json.dumps(asdict(client.model()), indent=2))


Command = (
    Annotated[Edit, subcommand("edit")]
    | Annotated[Encode, subcommand("encode")]
    | Annotated[Decode, subcommand("decode")]
    | Annotated[Info, subcommand("info")]
)


def main() -> int:
    """Runs one command; 0 when it worked, 2 for bad input, 1 when the server failed or can't be reached."""
    command: Edit | Encode | Decode | Info = tyro.cli(
        Command,
        prog="python -m engine.client",
        description="One call to a server that `python -m engine` runs.",
        config=(OmitSubcommandPrefixes,),
    )
    try:
        with Client(command.target, command.timeout_s) as client:
            command.run(client)
    except ClientError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if error.status in _CALLERS_FAULT else 1
    except (UsageError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parse_setting(setting: str) -> tuple[str, float]:
    name, equals, strength = setting.partition("=")
    try:
        if name and equals:
            return name, float(strength)
    except ValueError:
        pass
    raise UsageError(f"--set takes NAME=STRENGTH, for example Smiling=1.5, not {setting!r}")


def _format_of(path: Path) -> FileFormat:
    try:
        return _FORMATS[path.suffix.lower()]
    except KeyError:
        raise UsageError(f"{path} must end in one of {', '.join(_FORMATS)}") from None


if __name__ == "__main__":
    sys.exit(main())
