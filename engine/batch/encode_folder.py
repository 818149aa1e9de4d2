"""Every image of a folder to its latent, by as many servers as there are."""

import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
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
from engine.client.values import Model
from framing import FramingError

if TYPE_CHECKING:
    from engine.batch.parts import Parts

Outcome = Floats | str
"""A latent, float32 [D], or why there is none."""

_AS_LONG_AS_IT_TAKES = 2**31 - 1  # times, within the deadline of a call
_FIRST_ANSWER_S = 5.0
_SHOWN = 10
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

    retry_options: ClassVar[dict[str, int]] = dict.fromkeys(("retries", "retry_overload"), _AS_LONG_AS_IT_TAKES)

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
        encoder = _Encoder(client, model, self.folder, reader(model.frame, self.align))
        size = min(self.images_per_request, model.max_images_per_request)
        try:
            from engine.batch.parts import Parts  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise UsageError(
                f"Parquet files need pyarrow, which can't be imported ({error}); pip install 'dfc-vae[parquet]'"
            ) from None
        with closing(Parts(self.output, model.latent_dim, model.fingerprint)) as parts:
            paths = [path for path in found if path not in parts.done]
            there = len(parts.done)
            requests = [paths[start : start + size] for start in range(0, len(paths), size)]
            damaged = closed + self._encode(encoder, parts, requests)
            list_of_damaged = parts.list_damaged(damaged)
        new = len(parts.done) - there
        print(f"wrote {new} {'latent' if new == 1 else 'latents'} to {self.output}, which has {len(parts.done)} now")
        for path, why in damaged[:_SHOWN]:
            print(f"{path!r}: {why}", file=sys.stderr)
        if list_of_damaged:
            print(f"can't be encoded: {len(damaged)}, listed in {list_of_damaged}", file=sys.stderr)
        return 0

    def _encode(self, encoder: "_Encoder", parts: "Parts", requests: list[list[str]]) -> list[tuple[str, str]]:
        """Adds the latents of images, by their paths, in their order; those that can't be encoded, and why."""
        rows: list[tuple[str, Floats]] = []
        damaged: list[tuple[str, str]] = []
        done = len(parts.done)
        pool = ThreadPoolExecutor(self.requests_in_flight)
        bar = tqdm(total=done + sum(map(len, requests)), initial=done, unit="image", desc="encode", disable=None)
        try:
            for outcomes in _in_order(pool, encoder, requests, ahead=2 * self.requests_in_flight):
                for name, outcome in outcomes.items():
                    if isinstance(outcome, str):
                        damaged.append((name, outcome))
                    else:
                        rows.append((name, outcome))
                bar.update(len(outcomes))
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


def _in_order(
    pool: ThreadPoolExecutor, encoder: "_Encoder", requests: list[list[str]], ahead: int
) -> Iterator[dict[str, Outcome]]:
    """What comes of requests, in their order; few are ahead of the reader, whatever one of them waits for."""
    waiting: deque[Future[dict[str, Outcome]]] = deque()
    for request in requests:
        waiting.append(pool.submit(encoder.encode, request))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def images_under(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Paths of the image files under a folder, relative to it, sorted; without those that are hidden.

    And those of the folders in it that can't be read, and why.
    """
    found: list[str] = []
    errors: list[OSError] = []
    for where, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        base = Path(where).relative_to(folder)
        images = (name for name in files if Path(name).suffix.lower() in FORMATS and not name.startswith("."))
        found += [(base / name).as_posix() for name in images]
    closed = [(os.path.relpath(error.filename, folder), f"can't be read: {error.strerror}") for error in errors]
    return sorted(found), closed


@dataclass(frozen=True)
class _Encoder:
    """Has the files of a folder encoded; servers that have another bundle than `model` refuse."""

    client: Client
    model: Model
    folder: Path
    read: Read

    def encode(self, names: list[str]) -> dict[str, Outcome]:
        """What comes of some files, by name."""
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
        return {name: outcomes[name] for name in names}

    def _send(self, files: list[bytes]) -> list[Outcome]:
        """What comes of files: sent as one message, or by halves where that is too large or some can't be encoded."""
        if not files:
            return []
        room = self.model.max_message_bytes - _REST_OF_MESSAGE
        if sum(len(file) + _BYTES_A_FILE for file in files) > room:
            fault = f"has {len(files[0])} bytes; the server takes {room} at a time"
        else:
            try:
                return list(self.client.encode(files, model=self.model.reference, priority="background").mu)
            except ClientError as error:
                if error.status != "INVALID_ARGUMENT" or not error.message.startswith("images.files["):
                    raise
                fault = error.message.removeprefix("images.files[0] ")
        if len(files) == 1:
            return [fault]
        half = len(files) // 2
        return self._send(files[:half]) + self._send(files[half:])
