"""Coverage-guided fuzzing of what parses bytes, in a process of its own: atheris (libFuzzer) watches Pillow and engine.

    python benchmarks/fuzzing/guided.py images|messages BUNDLE CORPUS [libFuzzer's flags]

Ends with an exit code other than 0 at the first input that raises anything but an EngineError, takes too long, or too
much memory; libFuzzer prints it and keeps it as a file.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import atheris

with atheris.instrument_imports(include=["PIL", "engine"]):
    from PIL import (  # noqa: F401 - instrumented  # noqa: F401
        Image,
        ImageFile,
        ImageOps,
        JpegImagePlugin,
        MpoImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    from engine.bundle import Bundle
    from engine.errors import EngineError
    from engine.images import decode_file
    from engine.serving.wire import Files, Reader, read_form, read_output, read_priority
    from framing import Frame

from google.protobuf.message import DecodeError

from fuzzing.cases import Facts
from fuzzing.files import bomb_files, mend_png, picture_files
from fuzzing.strategies import Calls
from fuzzing.verdict import leaked
from protos import dfcvae_pb2 as pb

MAX_PIXELS = 1_000_000
MAX_SECONDS = 2.0
"""For one input; Pillow takes milliseconds."""
MAX_BYTES = 16_384
_MAX_IMAGES = 64
_SIDE = 48
_REQUESTS: tuple[Any, ...] = (
    pb.EncodeRequest,
    pb.DecodeRequest,
    pb.EditRequest,
    pb.EditStreamRequest,
    pb.InterpolateRequest,
    pb.SampleRequest,
)


class Leak(Exception):  # noqa: N818
    """Raise when a message for a client tells of the server's insides."""


class TooSlow(Exception):  # noqa: N818
    """Raise when an input took longer than any may."""


def read_image(data: bytes) -> None:
    """Decodes a file: as it is, and if it is a PNG also with its checksums mended.

    Raises:
        TooSlow: When that takes too long.
    """
    for file in (data, mend_png(data)) if data.startswith(b"\x89PNG") else (data,):
        for crop, source in ((None, None), (16, None), (16, (20, 24))):
            started = time.process_time()
            try:
                decode_file(file, Frame(_SIDE, crop, source), MAX_PIXELS)
            except EngineError as error:
                if secret := leaked(str(error), (file,)):
                    raise Leak(secret) from error
            if time.process_time() - started > MAX_SECONDS:
                raise TooSlow(f"{time.process_time() - started:.1f} s")


def request_reader(bundle: Path) -> Callable[[bytes], None]:
    """What reads requests of every kind, chosen by the first byte, all the way to arrays."""
    loaded = Bundle.load(bundle)
    reader = Reader(loaded.manifest, loaded.directions, _MAX_IMAGES)

    def read(data: bytes) -> None:
        kind = _REQUESTS[data[0] % len(_REQUESTS)] if data else pb.EncodeRequest
        try:
            request = kind.FromString(data[1:])
        except DecodeError:
            return
        started = time.process_time()
        for step in _steps(request, reader):
            with suppress(EngineError):
                step()
        if time.process_time() - started > MAX_SECONDS:
            raise TooSlow(f"{time.process_time() - started:.1f} s")

    return read


def _steps(request: Any, reader: Reader) -> list[Callable[[], object]]:
    def source(message: Any) -> None:
        given = reader.source(message)
        if isinstance(given, Files):
            for file in given.contents[:2]:
                decode_file(file, Frame(_SIDE), MAX_PIXELS)

    fields = request.DESCRIPTOR.fields_by_name
    steps: list[Callable[[], object]] = [lambda: read_priority(request)]
    if "result" in fields:
        steps.append(lambda: read_output(request))
    elif "output" in fields:
        steps.append(lambda: read_form(request.output))
    if "edits" in fields:
        steps += [lambda: reader.move(request.edits, request.keep), lambda: source(request)]
    elif "start" in fields:
        steps += [lambda: source(request.start), lambda: source(request.end)]
    elif "latents" in fields:
        steps.append(lambda: reader.latents(request.latents))
    elif "images" in fields:
        steps.append(lambda: reader.images(request.images))
    return steps


def write_seeds(target: str, bundle: Path, corpus: Path) -> None:
    """Fills a folder with inputs to begin with."""
    if target == "images":
        seeds: Sequence[bytes] = (*picture_files(24), *(file for file in bomb_files(200) if len(file) <= MAX_BYTES))
    else:
        names = [f"/dfcvae.v1.LatentEngine/{kind.DESCRIPTOR.name.removesuffix('Request')}" for kind in _REQUESTS]
        cases = [case for case in Calls(Facts.of(bundle)).draw(300, 1) if case.path in names and case.bodies]
        seeds = [bytes([names.index(case.path)]) + case.bodies[0] for case in cases]
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)


def main(arguments: Sequence[str]) -> None:
    """Fuzzes; never returns, since libFuzzer ends the process."""
    target, bundle, corpus, *flags = arguments
    write_seeds(target, Path(bundle), Path(corpus))
    warnings.simplefilter("ignore")
    logging.disable()
    read = read_image if target == "images" else request_reader(Path(bundle))
    atheris.Setup([sys.argv[0], corpus, f"-max_len={MAX_BYTES}", *flags], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
