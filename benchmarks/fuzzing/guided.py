"""Coverage-guided fuzzing of what parses bytes: atheris (libFuzzer) watches Pillow and engine.

    python benchmarks/fuzzing/guided.py images|messages BUNDLE CORPUS [libFuzzer's flags]

Ends with an exit code other than 0 at the first input that raises anything but an EngineError, takes too long, or too
much memory; libFuzzer prints it and keeps it as a file.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import atheris

with atheris.instrument_imports(include=["PIL", "engine"]):
    from PIL import (  # noqa: F401 - instrumented
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
    from engine.images import EncodedFiles, decode_file
    from engine.service.request_parser import RequestParser, read_form, read_output, read_priority
    from framing import Frame

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzzing.answers import leaked
from fuzzing.calls import METHODS, Messages
from fuzzing.files import bomb_files, mend_png, picture_files

MAX_PIXELS = 1_000_000
MAX_SECONDS = 2.0
"""For one input; Pillow takes milliseconds."""
MAX_BYTES = 16_384
_MAX_IMAGES = 64
_SIDE = 48
_SEEDS = 40
_PATHS = [path for path, method in METHODS.items() if "priority" in method.input_type.fields_by_name]


class Leak(Exception):  # noqa: N818
    """Raise when a message for a client tells of the server's insides."""


class TooSlow(Exception):  # noqa: N818
    """Raise when an input took longer than any may."""


def read_image(data: bytes) -> None:
    """Decodes a file: as it is, and if it is a PNG also with its checksums mended."""
    for file in (data, mend_png(data)) if data.startswith(b"\x89PNG") else (data,):
        for crop, source in ((None, None), (16, None), (16, (20, 24))):
            try:
                decode_file(file, Frame(_SIDE, crop, source), MAX_PIXELS)
            except EngineError as error:
                if secret := leaked(str(error), (file,)):
                    raise Leak(secret) from error


def read_request(reader: RequestParser, data: bytes) -> None:
    """Reads a request all the way to arrays; its first byte says of which method."""
    with suppress(DecodeError):
        kind = GetMessageClass(METHODS[_PATHS[data[0] % len(_PATHS) if data else 0]].input_type)
        for step in _steps(kind.FromString(data[1:]), reader):
            with suppress(EngineError):
                step()


def _steps(request: Any, reader: RequestParser) -> Iterator[Callable[[], object]]:
    def source(message: Any) -> None:
        given = reader.source(message)
        if isinstance(given, EncodedFiles):
            for file in given.contents[:2]:
                decode_file(file, Frame(_SIDE), MAX_PIXELS)

    fields = request.DESCRIPTOR.fields_by_name
    yield lambda: read_priority(request)
    if "result" in fields:
        yield lambda: read_output(request)
    elif "output" in fields:
        yield lambda: read_form(request.output)
    if "edits" in fields:
        yield lambda: reader.move(request.edits, request.keep)
        yield lambda: source(request)
    elif "start" in fields:
        yield lambda: source(request.start)
        yield lambda: source(request.end)
    elif "latents" in fields:
        yield lambda: reader.latents(request.latents)
    elif "images" in fields:
        yield lambda: reader.images(request.images)


def message_seeds(bundle: Bundle) -> list[bytes]:
    """Requests that Hypothesis draws, those of each method behind its number."""
    found: list[bytes] = []
    messages = Messages(bundle.manifest)
    once = settings(
        max_examples=_SEEDS, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck)
    )

    def keep(case: tuple[int, Any]) -> None:
        number, request = case
        found.append(bytes([number]) + request.SerializeToString())

    for number, path in enumerate(_PATHS):
        seed(1)(once(given(st.tuples(st.just(number), messages.requests(path)))(keep)))()
    return found


def main() -> None:
    """Fuzzes; never returns, since libFuzzer ends the process."""
    target, folder, corpus, *flags = sys.argv[1:]
    warnings.simplefilter("ignore")
    logging.disable()
    if target == "images":
        read: Callable[[bytes], None] = read_image
        seeds = [*picture_files(24), *bomb_files(200)]
    else:
        bundle = Bundle.load(Path(folder))
        read = partial(read_request, RequestParser(bundle.manifest, bundle.directions, _MAX_IMAGES))
        seeds = message_seeds(bundle)
    for number, data in enumerate(one for one in seeds if len(one) <= MAX_BYTES):
        Path(corpus, f"seed-{number}").write_bytes(data)

    def test_one_input(data: bytes) -> None:
        started = time.process_time()
        read(data)
        if (seconds := time.process_time() - started) > MAX_SECONDS:
            raise TooSlow(f"{seconds:.1f} s")

    atheris.Setup([sys.argv[0], corpus, f"-max_len={MAX_BYTES}", *flags], test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
