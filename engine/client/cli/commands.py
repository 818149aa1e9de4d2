"""The commands of `python -m engine.client`: each is its options, and what it does with a client."""

import difflib
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

from engine.client.arguments import finite, shown
from engine.client.cli.command import Command
from engine.client.cli.outputs import (
    FORMATS,
    Output,
    Overwrite,
    UsageError,
    array_output,
    format_of,
    image_output,
    require_new,
    save,
    say_written,
    write,
)
from engine.client.cli.photos import Align, Read, reader
from engine.client.errors import ClientError
from engine.client.synchronous import Client
from engine.client.values import Distribution, FileFormat, Floats, Images, Model, Walk
from framing import FramingError

T = TypeVar("T")

_IN_FLIGHT = 8
_CALLERS_FAULT = ("INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED")


@dataclass(frozen=True, kw_only=True)
class Edit(Command):
    """Edits the faces in image files: JPEG, PNG or WebP, with a face each.

    A face is expected where the training images had it, CelebA's in the middle of 178x218 pixels. A picture of another
    size is taken by its middle, and one of the model's own size as it is; --align finds the face.

    OUT is a folder when it ends in a slash, is one already, or has no suffix.
    """

    paths: Annotated[Positional[tuple[str, ...]], arg(metavar="IN... OUT", help_behavior_hint="(required)")]
    """Image files, or folders of such, then the file to write (.png, .jpg, .webp), or a folder for files named as the
    inputs."""

    settings: Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="NAME=STRENGTH")]
    """Attribute and strength in lengths of the mean difference, for example Smiling=1.5; negative takes it away. Repeat
    for several."""

    keep: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME")] = ()
    """Attribute that must stay as it is. Repeat for several."""

    align: Align = False

    folder_format: FileFormat = "PNG"
    """Format of the files in a folder."""

    overwrite: Overwrite = False

    def run(self, client: Client) -> int:
        """Sends the files and writes the results; a bad one doesn't keep the others from it."""
        edits = [_parse_setting(setting) for setting in self.settings]
        if not edits:
            raise UsageError("nothing to do: give at least one --set NAME=STRENGTH, for example --set Smiling=1.5")
        inputs, out = _inputs_and_output(self.paths)
        place = image_output(out, self.overwrite)
        outputs = self._outputs(inputs, place)
        model = client.model()
        _require_known([name for name, _ in edits] + list(self.keep), model)
        read = reader(model.frame, self.align)

        def edit(path: Path) -> None:
            output, file_format = outputs[path]
            (file,) = client.edit_files([read(path)], edits, self.keep, file_format)
            output.parent.mkdir(exist_ok=True)
            write(output, file)

        code, done = _for_each(edit, inputs, "edit")
        if done:
            say_written(place.path, len(done) if place.is_folder else None)
        return code

    def _outputs(self, inputs: list[Path], output: Output) -> dict[Path, tuple[Path, FileFormat]]:
        if not output.is_folder:
            if len(inputs) > 1:
                raise UsageError(f"{len(inputs)} inputs need a folder to write to, and {output.path} is a file")
            return {inputs[0]: (output.path, format_of(output.path))}
        suffix = {"JPEG": ".jpg"}.get(self.folder_format, f".{self.folder_format.lower()}")
        outputs = {path: (output.path / f"{path.stem}{suffix}", self.folder_format) for path in inputs}
        sources = {file: path for path, (file, _) in outputs.items()}
        for path, (file, _) in outputs.items():
            if sources[file] != path:
                raise UsageError(f"{path} and {sources[file]} would both be written to {file}; rename one")
        require_new(sources, output.overwrite)
        return outputs


@dataclass(frozen=True, kw_only=True)
class Encode(Command):
    """Writes the latents (posterior means) of image files: JPEG, PNG or WebP, with a face each, as for edit."""

    paths: Annotated[Positional[tuple[str, ...]], arg(metavar="IN... OUT", help_behavior_hint="(required)")]
    """Image files with a face each, or folders of such, then the .npy file to write: float32 [N, latent_dim], in their
    order."""

    align: Align = False

    overwrite: Overwrite = False

    def run(self, client: Client) -> int:
        """Sends the files and writes their latents, if all could be encoded."""
        inputs, out = _inputs_and_output(self.paths)
        output = array_output(out, self.overwrite)
        read = reader(client.model().frame, self.align)
        code, latents = _for_each(lambda path: client.encode([read(path)]).mu, inputs, "encode")
        if not code:
            file = io.BytesIO()
            np.save(file, np.concatenate(latents))
            write(output, file.getvalue())
            say_written(output)
        return code


@dataclass(frozen=True, kw_only=True)
class Decode(Command):
    """Writes the images of latents."""

    input: Annotated[Positional[Path], arg(metavar="IN")]
    """.npy file, float32 [N, latent_dim]."""

    output: Annotated[Positional[str], arg(metavar="OUT")]
    """Image file (.png, .jpg, .webp): the image, or a grid of several. Or a folder: 000.png, 001.png, ..."""

    overwrite: Overwrite = False

    def run(self, client: Client) -> int:
        """Sends the latents and writes their images."""
        output = image_output(self.output, self.overwrite)
        images = client.decode(_load_latents(self.input))
        save(images, output, _columns(len(images)))
        return 0


@dataclass(frozen=True, kw_only=True)
class Interpolate(Command):
    """Writes the images on the way from one face to another."""

    start: Annotated[Positional[Path], arg(metavar="START")]
    """Where to begin: an image file, or a .npy file of N latents for N walks."""

    end: Annotated[Positional[Path], arg(metavar="END")]
    """Where to end: an image file, or a .npy file of as many latents."""

    output: Annotated[Positional[str], arg(metavar="OUT")]
    """Image file (.png, .jpg, .webp): a grid, a row per walk. Or a folder: 000.png, 001.png, ..., walk by walk."""

    steps: int = 8
    """Images on each walk, both ends included."""

    walk: Walk = "linear"
    """A straight line, or an arc around the origin."""

    align: Align = False

    overwrite: Overwrite = False

    def run(self, client: Client) -> int:
        """Sends both ends and writes the images."""
        output = image_output(self.output, self.overwrite)
        read = reader(client.model().frame, self.align)
        start, end = _load_source(self.start, read), _load_source(self.end, read)
        walks = client.interpolate(start, end, self.steps, self.walk)
        save(walks.reshape(-1, *walks.shape[2:]), output, self.steps)
        return 0


@dataclass(frozen=True, kw_only=True)
class Sample(Command):
    """Writes new faces."""

    output: Annotated[Positional[str], arg(metavar="OUT")]
    """Image file (.png, .jpg, .webp): the image, or a grid of several. Or a folder: 000.png, 001.png, ..."""

    count: int = 16
    """Faces to draw."""

    seed: int = 0
    """The same seed gives the same latents everywhere, and images up to the precision of the bundle's engine."""

    temperature: float = 1.0
    """Factor on the distance from the mean, 0 to 10: lower is more usual, higher more varied."""

    distribution: Distribution = "auto"
    """N(0, I), the fit to the training faces, or (auto) the fit where the model has one."""

    overwrite: Overwrite = False

    def run(self, client: Client) -> int:
        """Draws and writes."""
        output = image_output(self.output, self.overwrite)
        images = client.sample(self.count, self.seed, self.temperature, self.distribution)
        save(images, output, _columns(self.count))
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
    text = f"{about}{error}"
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename} can't be used: {error.strerror[0].lower()}{error.strerror[1:]}"
    tqdm.write(f"error: {text}", file=sys.stderr)
    return 1 if isinstance(error, ClientError) and error.status not in _CALLERS_FAULT else 2


def _for_each(do: Callable[[Path], T], paths: list[Path], verb: str) -> tuple[int, list[T]]:
    """Does something with every file, several at a time, past the bad files but not past a server's failure.

    Returns:
        The exit code, and what came of the good files.
    """
    code, results = 0, []
    pool = ThreadPoolExecutor(_IN_FLIGHT)
    try:
        calls = [pool.submit(do, path) for path in paths]
        hidden = True if len(paths) == 1 else None  # None: where stderr is no terminal
        progress = tqdm(zip(paths, calls, strict=True), verb, len(paths), unit="file", disable=hidden)
        for path, call in progress:
            try:
                results.append(call.result())
            except (ClientError, FramingError, OSError) as error:
                if isinstance(error, ClientError) and error.status != "INVALID_ARGUMENT":
                    raise
                named = len(paths) == 1 or isinstance(error, FramingError)
                code = report(error, "" if named else f"{path}: ")
    finally:
        pool.shutdown(cancel_futures=True)
    return code, results


def _inputs_and_output(paths: tuple[str, ...]) -> tuple[list[Path], str]:
    if not paths:
        raise UsageError("no input and no output: give at least one image file, and then OUT")
    *inputs, output = paths
    if not inputs:
        raise UsageError(f"no input: give at least one image file before OUT {output}")
    return [file for name in inputs for file in _files_of(Path(name))], output


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in FORMATS and not file.name.startswith("."))
    if not files:
        raise UsageError(f"{path} is a folder without image files ({', '.join(FORMATS)})")
    return files


def _require_known(names: list[str], model: Model) -> None:
    """Refuses names that are nearly those of attributes; the server says what is wrong with others."""
    known = {attribute.name.lower(): attribute.name for attribute in model.attributes}
    for name in names:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        if near and known[near[0]] != name:
            raise UsageError(f"unknown attribute {name!r}; did you mean {known[near[0]]!r}?")


def _parse_setting(setting: str) -> tuple[str, float]:
    name, equals, strength = map(str.strip, setting.partition("="))
    try:
        if name and equals:
            return name, finite("strength", float(strength))
    except ValueError:
        pass
    raise UsageError(
        f"--set takes NAME=STRENGTH, the strength a finite float32 number, for example Smiling=1.5, not {setting!r}"
    )


def _load_latents(path: Path) -> Floats:
    try:
        latents = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UsageError(f"{path} is not a .npy file: {error}") from None
    if not isinstance(latents, np.ndarray):
        raise UsageError(f"{path} holds several arrays; give a .npy file with one")
    if latents.ndim != 2 or not np.issubdtype(latents.dtype, np.floating):
        raise UsageError(f"{path} must hold latents, float32 [N, latent_dim], not {shown(latents)}")
    return latents


def _load_source(path: Path, read: Read) -> Images | Floats:
    return _load_latents(path) if path.suffix == ".npy" else [read(path)]


def _columns(count: int) -> int:
    return math.ceil(math.sqrt(count))
