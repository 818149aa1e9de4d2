"""The commands of `python -m engine.client`: each is its options, and what it does with a client."""

import io
import itertools
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
from tqdm import tqdm
from tyro.conf import Positional, UseAppendAction, arg

from engine.client.cli import inputs, outputs
from engine.client.cli.command import Command, report
from engine.client.cli.inputs import Align, Settings
from engine.client.cli.outputs import PIPE, Output, Overwrite, PictureFormat, UsageError
from engine.client.clients import Client
from engine.client.errors import ClientError
from engine.client.values import Distribution, Walk
from framing import FramingError

T = TypeVar("T")

_IN_FLIGHT = 8


@dataclass(frozen=True, kw_only=True)
class Edit(Command):
    """Edits the faces in image files: JPEG, PNG or WebP, with a face each.

    A face is expected where the training images had it, CelebA's in the middle of 178x218 pixels. A picture of another
    size is taken by its middle, and one of the model's own size as it is; --align finds the face.

    With a range of strengths, what comes of a face is a grid of pictures (.png, .jpg), or an animation (.gif, .webp).
    With two, the first goes down the grid and the second across.

    OUT is a folder when it ends in a slash, is one already, or has no suffix. A hyphen is stdin as IN, stdout as OUT.
    """

    paths: Annotated[Positional[tuple[str, ...]], arg(metavar="IN... OUT", help_behavior_hint="(required)")]
    """Image files, or folders of such, then the file to write (.png, .jpg, .webp, .gif), or a folder for files named as
    the inputs."""

    settings: Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="NAME=STRENGTH")] = ()
    """Attribute and strength in lengths of the mean difference, for example Smiling=1.5; negative takes it away. Or a
    range, FROM:TO:COUNT, for example Smiling=-2:2:5. Repeat for several."""

    having: Annotated[UseAppendAction[tuple[str, ...]], arg(name="with", metavar="NAME")] = ()
    """Attribute that every face is to have: those that lack it are moved as far as it takes. Repeat for several."""

    lacking: Annotated[UseAppendAction[tuple[str, ...]], arg(name="without", metavar="NAME")] = ()
    """Attribute that no face is to have. Repeat for several."""

    keep: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME")] = ()
    """Attribute that must stay as it is. Repeat for several."""

    align: Align = False

    file_format: Annotated[PictureFormat, arg(name="format")] = "PNG"
    """Format of the files in a folder, and of stdout."""

    overwrite: Overwrite = False

    def run(self, client: Client) -> int:
        """Sends the files and writes the results; a bad one doesn't keep the others from it."""
        given = [inputs.parse_setting(setting) for setting in self.settings]
        names, settings = [name for name, _ in given], dict(given)
        conditions = (*self.having, *self.lacking)
        if not settings and not conditions:
            raise UsageError(
                "nothing to do: give at least one --set NAME=STRENGTH, for example --set Smiling=1.5, or --with NAME"
            )
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"--set gives {twice} several strengths; give one, or a range, for example {twice}=-2:2:5")
        paths, out = inputs.files_and_output(self.paths)
        place = outputs.image_output(out, self.overwrite, self.file_format)
        ranges = sum(len(strengths) > 1 for strengths in settings.values())
        if ranges > 2:
            raise UsageError(f"--set: {ranges} ranges of strengths; a grid has room for two")
        if place.file_format == "GIF" and not ranges:
            raise UsageError("a GIF shows a range of strengths, for example --set Smiling=-2:2:9; one has no room here")
        files = _files_to_write(paths, place)
        model = client.model()
        inputs.require_known([*names, *conditions, *self.keep], model)
        read = inputs.reader(model.frame, self.align)

        def edit(path: Path) -> None:
            outputs.write(files[path], self._edited(client, read(path), settings, place.file_format))

        code, done = _for_each(edit, [*files], "edit")
        if done:
            outputs.say_written(place.path, len(done) if place.is_folder else None)
        return code

    def _edited(self, client: Client, file: bytes, settings: Settings, file_format: PictureFormat) -> bytes:
        """One image file of the edits by all combinations of strengths, the last range's next to each other."""
        combinations = list(itertools.product(*settings.values()))
        source = [file] if len(combinations) == 1 else client.encode([file]).mu
        images = []
        for strengths in combinations:
            edits = zip(settings, strengths, strict=True)
            images.append(client.edit(source, edits, self.keep, having=self.having, lacking=self.lacking))
        columns = next((len(strengths) for strengths in reversed(settings.values()) if len(strengths) > 1), 1)
        walks = np.concatenate(images).reshape(-1, columns, *images[0].shape[1:])
        return outputs.picture(walks, columns, file_format)


@dataclass(frozen=True, kw_only=True)
class Encode(Command):
    """Writes the latents (posterior means) of image files: JPEG, PNG or WebP, with a face each, as for edit."""

    paths: Annotated[Positional[tuple[str, ...]], arg(metavar="IN... OUT", help_behavior_hint="(required)")]
    """Image files with a face each, or folders of such, then the .npy file to write: float32 [N, latent_dim], in their
    order. A hyphen is stdin as IN, stdout as OUT."""

    align: Align = False

    overwrite: Overwrite = False

    def run(self, client: Client) -> int:
        """Sends the files and writes their latents, if all could be encoded."""
        paths, out = inputs.files_and_output(self.paths)
        output = outputs.array_output(out, self.overwrite)
        read = inputs.reader(client.model().frame, self.align)
        code, latents = _for_each(lambda path: client.encode([read(path)]).mu, paths, "encode")
        if not code:
            file = io.BytesIO()
            np.save(file, np.concatenate(latents))
            outputs.write(output, file.getvalue())
            outputs.say_written(output)
        return code


@dataclass(frozen=True, kw_only=True)
class Decode(Command):
    """Writes the images of latents."""

    input: Annotated[Positional[Path], arg(metavar="IN")]
    """.npy file, float32 [N, latent_dim]; a hyphen for stdin."""

    output: Annotated[Positional[str], arg(metavar="OUT")]
    """Image file: the image, or of several a grid (.png, .jpg) or an animation (.gif, .webp). Or a folder: 000.png,
    001.png, ... Or a hyphen for stdout."""

    overwrite: Overwrite = False

    def run(self, client: Client) -> int:
        """Sends the latents and writes their images."""
        output = outputs.image_output(self.output, self.overwrite)
        images = client.decode(inputs.load_latents(self.input))
        outputs.save(images[np.newaxis], output)
        return 0


@dataclass(frozen=True, kw_only=True)
class Interpolate(Command):
    """Writes the images on the way from one face to another."""

    start: Annotated[Positional[Path], arg(metavar="START")]
    """Where to begin: an image file, or a .npy file of N latents for N walks; a hyphen for stdin."""

    end: Annotated[Positional[Path], arg(metavar="END")]
    """Where to end: an image file, or a .npy file of as many latents; a hyphen for stdin."""

    output: Annotated[Positional[str], arg(metavar="OUT")]
    """Image file: a grid, a row per walk (.png, .jpg), or an animation (.gif, .webp). Or a folder: 000.png, 001.png,
    ..., walk by walk. Or a hyphen for stdout."""

    steps: int = 8
    """Images on each walk, both ends included."""

    walk: Walk = "linear"
    """A straight line, or an arc around the mean of faces."""

    align: Align = False

    overwrite: Overwrite = False

    def run(self, client: Client) -> int:
        """Sends both ends and writes the images."""
        output = outputs.image_output(self.output, self.overwrite)
        read = inputs.reader(client.model().frame, self.align)
        start, end = inputs.load_source(self.start, read), inputs.load_source(self.end, read)
        try:
            walks = client.interpolate(start, end, self.steps, self.walk)
        except ClientError as error:
            raise _about_file(error, {"start.images.files[0]": self.start, "end.images.files[0]": self.end}) from None
        outputs.save(walks, output, self.steps)
        return 0


@dataclass(frozen=True, kw_only=True)
class Sample(Command):
    """Writes new faces."""

    output: Annotated[Positional[str], arg(metavar="OUT")]
    """Image file: the image, or of several a grid (.png, .jpg) or an animation (.gif, .webp). Or a folder: 000.png,
    001.png, ... Or a hyphen for stdout."""

    count: int = 16
    """Faces to draw."""

    seed: int = 0
    """The same seed gives the same latents everywhere, and images up to the precision of the bundle's engine."""

    temperature: float = 1.0
    """Factor on the distance from the mean, 0 to 10: lower is more usual, higher more varied."""

    distribution: Distribution = "auto"
    """N(0, I), a Gaussian or a mixture that fits the training faces, or (auto) the closest to them that there is."""

    having: Annotated[UseAppendAction[tuple[str, ...]], arg(name="with", metavar="NAME")] = ()
    """Attribute that all of them are to have, for example Smiling. Repeat for several."""

    lacking: Annotated[UseAppendAction[tuple[str, ...]], arg(name="without", metavar="NAME")] = ()
    """Attribute that none is to have, for example Eyeglasses. Repeat for several."""

    overwrite: Overwrite = False

    def run(self, client: Client) -> int:
        """Draws and writes."""
        output = outputs.image_output(self.output, self.overwrite)
        if conditional := [*self.having, *self.lacking]:
            inputs.require_known(conditional, client.model())
        drawn = self.count, self.seed, self.temperature, self.distribution
        images = client.sample(*drawn, having=self.having, lacking=self.lacking)
        outputs.save(images[np.newaxis], output)
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
        for path, call in tqdm(zip(paths, calls, strict=True), verb, len(paths), unit="file", disable=hidden):
            try:
                results.append(call.result())
            except (ClientError, FramingError, OSError) as error:
                if isinstance(error, ClientError) and error.status != "INVALID_ARGUMENT":
                    raise
                told = _about_file(error, {"images.files[0]": path})
                named = len(paths) == 1 or isinstance(told, FramingError)
                code = report(told, "" if named else f"{path}: ")
    finally:
        pool.shutdown(cancel_futures=True)
    return code, results


def _about_file(error: Exception, files: Mapping[str, Path]) -> Exception:
    """The refusal of a file by its own name, instead of its place in the request; other errors as they are."""
    if isinstance(error, ClientError):
        for field, path in files.items():
            if error.message.startswith(f"{field} "):
                return FramingError(f"{'stdin' if path == PIPE else path}{error.message.removeprefix(field)}")
    return error


def _files_to_write(paths: list[Path], place: Output) -> dict[Path, Path]:
    """The file to write for each that is read, once, however often it is named."""
    if not place.is_folder:
        if len(paths) > 1:
            what = "stdout" if place.path == PIPE else f"{place.path} is a file"
            raise UsageError(f"{len(paths)} inputs need a folder to write to, and {what}")
        return {paths[0]: place.path}
    suffix = {"JPEG": ".jpg"}.get(place.file_format, f".{place.file_format.lower()}")
    sources: dict[Path, Path] = {}
    for path in paths:
        file = place.path / f"{'stdin' if path == PIPE else path.stem}{suffix}"
        if sources.setdefault(file, path) != path:
            raise UsageError(f"{sources[file]} and {path} would both be written to {file}; rename one")
    outputs.require_new(sources, place.overwrite)
    return {path: file for file, path in sources.items()}
