"""Every image of a folder to its latent, by as many servers as there are."""

import os
import re
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from tqdm import tqdm
from tyro.conf import Positional, arg

from engine.arrays import Floats
from engine.client.arguments import whole
from engine.client.cli.command import Command
from engine.client.cli.inputs import Align, Read, reader
from engine.client.cli.outputs import FORMATS, UsageError
from engine.client.clients import Client
from engine.client.errors import ClientError
from framing import FramingError

if TYPE_CHECKING:
    from engine.batch.parts import Parts

Outcome = Floats | str
"""A latent, float32 [D], or why there is none."""

_AS_LONG_AS_IT_TAKES = 2**31 - 1  # times, within the deadline of a call
_FIRST_ANSWER_S = 5.0
_SHOWN = 10
_FILE = re.compile(r"images\.files\[(\d+)\]")
_REST_OF_MESSAGE = 4096
_BYTES_A_FILE = 16


@dataclass(frozen=True, kw_only=True)
class EncodeFolder(Command):
    """Encodes every JPEG, PNG and WebP file under a folder to its latent (posterior mean), each once.

    OUT.parquet is a folder of Parquet files that pandas, pyarrow, Ray and Spark read as one table, with the columns
    `path` (within IN_FOLDER) and `mu` (float32 [latent_dim]). What is in it already isn't encoded again: after an
    interruption, or when there are new images, the same command goes on. Images that can't be encoded are listed in
    OUT.parquet/_damaged.csv, and tried again the next time.

    Several servers share the work: --target ipv4:10.0.0.1:50051,10.0.0.2:50051, or a DNS name of all.
    """

    retries: ClassVar[int] = _AS_LONG_AS_IT_TAKES
    retry_overload: ClassVar[int] = _AS_LONG_AS_IT_TAKES

    folder: Annotated[Positional[Path], arg(metavar="IN_FOLDER")]
    """Images, also in folders within it; links to other folders are not followed."""

    output: Annotated[Positional[Path], arg(metavar="OUT.parquet")]
    """The data set."""

    align: Align = False

    images_per_request: int = 32
    """Images that are sent together, 1 or more."""

    requests_in_flight: int = 8
    """Requests that wait for an answer at a time, 1 or more: some for each server."""

    images_per_part: int = 8192
    """Images of a Parquet file, 1 or more; an interruption loses at most so many."""

    def run(self, client: Client) -> int:
        """Encodes what isn't there yet."""
        for name in ("images_per_request", "requests_in_flight", "images_per_part"):
            whole(f"--{name.replace('_', '-')}", getattr(self, name), 1, 2**20)
        if not self.folder.is_dir():
            raise UsageError(f"{self.folder} is no folder; give one with images")
        found, closed = images_under(self.folder)
        if not found:
            if closed:
                raise UsageError(f"{self.folder / closed[0][0]} {closed[0][1]}, and {self.folder} has no other images")
            raise UsageError(f"{self.folder} has no image files ({', '.join(FORMATS)}), nor have folders within it")
        model = client.model(timeout=min(_FIRST_ANSWER_S, self.timeout_s))
        room = model.max_message_bytes - _REST_OF_MESSAGE
        encoder = _Encoder(client, model.reference, self.folder, room, reader(model.frame, self.align))
        size = min(self.images_per_request, model.max_images_per_request)
        try:
            from engine.batch.parts import Parts  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise UsageError(
                f"Parquet files need pyarrow, which can't be imported ({error}); pip install 'dfc-vae[parquet]'"
            ) from None
        parts = Parts(self.output, model.latent_dim, model.fingerprint)
        try:
            paths = [path for path in found if path not in parts.done]
            there = len(parts.done)
            damaged = closed + self._encode(encoder, parts, paths, size)
            list_of_damaged = parts.list_damaged(damaged)
        finally:
            parts.close()
        new = len(parts.done) - there
        print(f"wrote {new} {'latent' if new == 1 else 'latents'} to {self.output}, which has {len(parts.done)} now")
        for path, why in damaged[:_SHOWN]:
            print(f"{path!r}: {why}", file=sys.stderr)
        if list_of_damaged:
            print(f"can't be encoded: {len(damaged)}, listed in {list_of_damaged}", file=sys.stderr)
        return 0

    def _encode(self, encoder: "_Encoder", parts: "Parts", paths: list[str], size: int) -> list[tuple[str, str]]:
        """Encodes images, so many a request, and adds their latents in their order; those that can't be, and why."""
        rows: list[tuple[str, Floats]] = []
        damaged: list[tuple[str, str]] = []
        done, ahead = len(parts.done), 2 * self.requests_in_flight
        pool = ThreadPoolExecutor(self.requests_in_flight)
        bar = tqdm(total=done + len(paths), initial=done, unit="image", desc="encode", disable=None)
        try:
            for names, outcomes in encoder.in_order(pool, paths, size, ahead):
                for name, outcome in zip(names, outcomes, strict=True):
                    if isinstance(outcome, str):
                        damaged.append((name, outcome))
                    else:
                        rows.append((name, outcome))
                bar.update(len(names))
                if len(rows) >= self.images_per_part:
                    parts.append(rows)
                    rows = []
        except BaseException:
            encoder.client.close()  # so that nobody waits for what is on its way
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            bar.close()
            if rows:
                parts.append(rows)
        return damaged


def images_under(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Paths of the image files under a folder, relative to it, sorted; without those that are hidden.

    And those of the folders in it that can't be read, and why.
    """
    found: list[str] = []
    closed: list[tuple[str, str]] = []

    def shut(error: OSError) -> None:
        closed.append((os.path.relpath(error.filename, folder), f"can't be read: {error.strerror}"))

    for where, folders, files in os.walk(folder, onerror=shut):
        folders[:] = [name for name in folders if not name.startswith(".")]
        base = Path(where).relative_to(folder)
        images = (name for name in files if Path(name).suffix.lower() in FORMATS and not name.startswith("."))
        found += [(base / name).as_posix() for name in images]
    return sorted(found), closed


@dataclass(frozen=True)
class _Encoder:
    """Has the files of a folder encoded, as many in a message as there is `room` for, in bytes.

    Servers that have another bundle than `model` refuse.
    """

    client: Client
    model: str
    folder: Path
    room: int
    read: Read

    def in_order(
        self, pool: ThreadPoolExecutor, names: Sequence[str], size: int, ahead: int
    ) -> Iterator[tuple[list[str], list[Outcome]]]:
        """Names, so many a request, and what came of them, in their order; some requests are ahead of the reader."""
        waiting: deque[tuple[list[str], Future[list[Outcome]]]] = deque()
        left = iter(names)
        while some := list(islice(left, size)):
            waiting.append((some, pool.submit(self.encode, some)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()

    def encode(self, names: Sequence[str]) -> list[Outcome]:
        """What comes of some files."""
        outcomes: dict[str, Outcome] = {}
        files = {}
        for name in names:
            try:
                name.encode()
                files[name] = self.read(self.folder / name)
            except UnicodeEncodeError:
                outcomes[name] = "the name is not UTF-8; rename the file"
            except OSError as error:
                outcomes[name] = f"can't be read: {error.strerror}"
            except FramingError as error:
                outcomes[name] = str(error).removeprefix(f"{self.folder / name} ")
        outcomes.update(zip(files, self._send([*files.values()]), strict=True))
        return [outcomes[name] for name in names]

    def _send(self, files: list[bytes]) -> list[Outcome]:
        """What comes of files, in as many messages as they need."""
        if sum(len(file) + _BYTES_A_FILE for file in files) <= self.room:
            return self._send_message(files)
        if len(files) == 1:
            return [f"has {len(files[0])} bytes; the server takes {self.room} at a time"]
        half = len(files) // 2
        return self._send(files[:half]) + self._send(files[half:])

    def _send_message(self, files: list[bytes]) -> list[Outcome]:
        """What comes of files; those that can't be encoded are taken out, and the others sent again."""
        outcomes: dict[int, Outcome] = {}
        left = list(range(len(files)))
        while left:
            try:
                latents = self.client.encode(
                    [files[index] for index in left], model=self.model, priority="background"
                ).mu
            except ClientError as error:
                found = [match for one in error.violations if (match := _FILE.fullmatch(one.field))]
                if error.status != "INVALID_ARGUMENT" or not found:
                    raise
                outcomes[left.pop(int(found[0][1]))] = error.message.removeprefix(f"{found[0][0]} ")
            else:
                outcomes.update(zip(left, latents, strict=True))
                break
        return [outcomes[index] for index in range(len(files))]
