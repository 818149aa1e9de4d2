"""The commands of `python -m engine.client`: each is its options, and what it does with a client."""

import io
import json
import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
from tqdm import tqdm
from tyro.conf import Positional, UseAppendAction, arg

from engine.client.errors import ClientError
from engine.client.outputs import UsageError, check_output, format_of, is_folder, save, write
from engine.client.synchronous import Client
from engine.client.values import Distribution, FileFormat, Floats, Images, Walk

T = TypeVar("T")

_IN_FLIGHT = 8
_OVERLOAD_RETRIES = 10
_CALLERS_FAULT = ("INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED")


@dataclass(frozen=True, kw_only=True)
class Command:
    """What every command has: where the server is, and who asks."""

    target: str = "127.0.0.1:50051"
    """HOST:PORT of the server."""

    model: str = ""
    """Name of the model, where the server has several; empty for its default."""

    timeout_s: float = 60.0
    """Deadline of each call, seconds."""

    tls: bool = False
    """Encrypt, and trust the authorities that gRPC knows."""

    tls_ca: Path | None = None
    """Encrypt, and trust the authorities in this PEM file."""

    tls_cert: Path | None = None
    """The client's own certificate (PEM), where the server asks for one."""

    tls_key: Path | None = None
    """Key of that certificate (PEM)."""

    token: str | None = None
    """Bearer token, where the server asks for one. Other users of this machine can see it: better give a file."""

    token_file: Path | None = None
    """File with the token."""

    def run(self, client: Client) -> int:
        """Does it; the exit code."""
        raise NotImplementedError

    def client(self) -> Client:
        """The client that the options ask for.

        Raises:
            UsageError: When they don't fit together.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("--tls-cert and --tls-key go together; give both")
        if self.token and self.token_file:
            raise UsageError("give --token or --token-file, not both")
        return Client(
            self.target,
            self.timeout_s,
            model=self.model,
            retry_overload=_OVERLOAD_RETRIES,
            tls=self.tls_ca or self.tls,
            certificate=(self.tls_cert, self.tls_key) if self.tls_cert and self.tls_key else None,
            token=self.token_file.read_text().strip() if self.token_file else self.token,
        )


@dataclass(frozen=True, kw_only=True)
class Edit(Command):
    """Edits the faces in image files."""

    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="IN...")]
    """JPEG, PNG or WebP files with a face each, framed as the training images were."""

    output: Annotated[Positional[Path], arg(metavar="OUT")]
    """Image file to write; its suffix chooses .png, .jpg or .webp. Or a folder: files named as the inputs."""

    settings: Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="NAME=STRENGTH")]
    """Attribute and strength, for example Smiling=1.5; negative takes it away. Repeat for several."""

    keep: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME")] = ()
    """Attribute that must stay as it is. Repeat for several."""

    folder_format: FileFormat = "PNG"
    """Format of the files in a folder."""

    def run(self, client: Client) -> int:
        """Sends the files and writes the results; a bad one doesn't keep the others from it."""
        edits = [_parse_setting(setting) for setting in self.settings]
        if not edits:
            raise UsageError("nothing to do: give at least one --set NAME=STRENGTH, for example --set Smiling=1.5")
        outputs = self._outputs()

        def edit(path: Path) -> None:
            output, file_format = outputs[path]
            (file,) = client.edit_files([path.read_bytes()], edits, self.keep, file_format)
            output.parent.mkdir(exist_ok=True)
            write(output, file)

        code, _ = _for_each(edit, self.inputs, "edit")
        return code

    def _outputs(self) -> dict[Path, tuple[Path, FileFormat]]:
        check_output(self.output)
        if not is_folder(self.output):
            if len(self.inputs) > 1:
                raise UsageError(f"{len(self.inputs)} inputs need a folder to write to, and {self.output} is a file")
            return {self.inputs[0]: (self.output, format_of(self.output))}
        suffix = {"JPEG": ".jpg"}.get(self.folder_format, f".{self.folder_format.lower()}")
        outputs = {path: (self.output / f"{path.stem}{suffix}", self.folder_format) for path in self.inputs}
        sources = {output: path for path, (output, _) in outputs.items()}
        for path, (output, _) in outputs.items():
            if sources[output] != path:
                raise UsageError(f"{path} and {sources[output]} would both be written to {output}; rename one")
        return outputs


@dataclass(frozen=True, kw_only=True)
class Encode(Command):
    """Writes the latents (posterior means) of image files."""

    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="IN...")]
    """JPEG, PNG or WebP files with a face each, framed as the training images were."""

    output: Annotated[Positional[Path], arg(metavar="OUT")]
    """.npy file to write, float32 [N, latent_dim], in the order of the files."""

    def run(self, client: Client) -> int:
        """Sends the files and writes their latents, if all could be encoded."""
        if self.output.suffix != ".npy":
            raise UsageError(f"{self.output} must end in .npy")
        code, latents = _for_each(lambda path: client.encode([path.read_bytes()]).mu, self.inputs, "encode")
        if not code:
            file = io.BytesIO()
            np.save(file, np.concatenate(latents))
            write(self.output, file.getvalue())
        return code


@dataclass(frozen=True, kw_only=True)
class Decode(Command):
    """Writes the images of latents."""

    input: Annotated[Positional[Path], arg(metavar="IN")]
    """.npy file, float32 [N, latent_dim]."""

    output: Annotated[Positional[Path], arg(metavar="OUT")]
    """Image file (.png, .jpg, .webp): the image, or a grid of several. Or a folder: 000.png, 001.png, ..."""

    def run(self, client: Client) -> int:
        """Sends the latents and writes their images."""
        check_output(self.output)
        images = client.decode(_load_latents(self.input))
        save(images, self.output, _columns(len(images)))
        return 0


@dataclass(frozen=True, kw_only=True)
class Interpolate(Command):
    """Writes the images on the way from one face to another."""

    start: Annotated[Positional[Path], arg(metavar="START")]
    """Where to begin: an image file, or a .npy file of N latents for N walks."""

    end: Annotated[Positional[Path], arg(metavar="END")]
    """Where to end: an image file, or a .npy file of as many latents."""

    output: Annotated[Positional[Path], arg(metavar="OUT")]
    """Image file (.png, .jpg, .webp): a grid, a row per walk. Or a folder: 000.png, 001.png, ..., walk by walk."""

    steps: int = 8
    """Images on each walk, both ends included."""

    walk: Walk = "linear"
    """A straight line, or an arc around the origin."""

    def run(self, client: Client) -> int:
        """Sends both ends and writes the images."""
        check_output(self.output)
        walks = client.interpolate(_load_source(self.start), _load_source(self.end), self.steps, self.walk)
        save(walks.reshape(-1, *walks.shape[2:]), self.output, self.steps)
        return 0


@dataclass(frozen=True, kw_only=True)
class Sample(Command):
    """Writes new faces."""

    output: Annotated[Positional[Path], arg(metavar="OUT")]
    """Image file (.png, .jpg, .webp): the image, or a grid of several. Or a folder: 000.png, 001.png, ..."""

    count: int = 16
    """Faces to draw."""

    seed: int = 0
    """The same seed draws the same faces."""

    temperature: float = 1.0
    """Factor on the distance from the mean, 0 to 10: lower is more usual, higher more varied."""

    distribution: Distribution = "auto"
    """N(0, I), the fit to the training faces, or (auto) the fit where the model has one."""

    def run(self, client: Client) -> int:
        """Draws and writes."""
        check_output(self.output)
        images = client.sample(self.count, self.seed, self.temperature, self.distribution)
        save(images, self.output, _columns(self.count))
        return 0


@dataclass(frozen=True, kw_only=True)
class Info(Command):
    """Prints what the server serves, as JSON."""

    def run(self, client: Client) -> int:
        """Asks and prints."""
        print(json.dumps(asdict(client.model()), indent=2))
        return 0


@dataclass(frozen=True, kw_only=True)
class Health(Command):
    """Prints whether the server is ready: SERVING (exit code 0), or NOT_SERVING (1)."""

    def run(self, client: Client) -> int:
        """Asks and prints."""
        status = client.health()
        print(status)
        return 0 if status == "SERVING" else 1


def report(error: Exception, about: str = "") -> int:
    """Says what went wrong, on one line of stderr; the exit code."""
    tqdm.write(f"error: {about}{error}", file=sys.stderr)
    return 1 if isinstance(error, ClientError) and error.status not in _CALLERS_FAULT else 2


def _for_each(do: Callable[[Path], T], paths: tuple[Path, ...], verb: str) -> tuple[int, list[T]]:
    """Does something with every file, several at a time, past the bad files but not past a server's failure.

    Returns:
        The exit code, and what came of the good files.
    """
    code, results = 0, []
    pool = ThreadPoolExecutor(_IN_FLIGHT)
    try:
        calls = [pool.submit(do, path) for path in paths]
        progress = tqdm(zip(paths, calls, strict=True), verb, len(paths), unit="file", disable=len(paths) == 1)
        for path, call in progress:
            try:
                results.append(call.result())
            except (ClientError, OSError) as error:
                if isinstance(error, ClientError) and error.status != "INVALID_ARGUMENT":
                    raise
                code = report(error, "" if len(paths) == 1 else f"{path}: ")
    finally:
        pool.shutdown(cancel_futures=True)
    return code, results


def _parse_setting(setting: str) -> tuple[str, float]:
    name, equals, strength = setting.partition("=")
    try:
        if name and equals:
            return name, float(strength)
    except ValueError:
        pass
    raise UsageError(f"--set takes NAME=STRENGTH, for example Smiling=1.5, not {setting!r}")


def _load_latents(path: Path) -> Floats:
    try:
        latents = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UsageError(f"{path} is not a .npy file: {error}") from None
    if not isinstance(latents, np.ndarray):
        raise UsageError(f"{path} holds several arrays; give a .npy file with one")
    return latents


def _load_source(path: Path) -> Images | Floats:
    return _load_latents(path) if path.suffix == ".npy" else [path.read_bytes()]


def _columns(count: int) -> int:
    return math.ceil(math.sqrt(count))
