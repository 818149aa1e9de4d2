"""What a client refuses to send: each refusal names the argument, what was given, and how to mend it."""

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from servers import ServerProcess
from tiny_model import LATENT_DIM, latents_of, random_images

from engine.client import Client, ClientError, StreamEdit

Z = np.zeros((2, 3), np.float32)
FACE = b"the bytes of a file"
FLOAT_PIXELS = np.zeros((1, 8, 8, 3), np.float32)
PICTURE = Image.new("RGB", (8, 8))
READ_IT = "; read the file first: open(path, 'rb').read()"
BEYOND = "must be a finite float32 number, at most 3.4e+38 in size, not "


def beyond() -> Any:
    latents = np.zeros((2, 3))
    latents[1, 2] = 1e40
    return latents


CASES: list[tuple[Callable[[Any], object], type[Exception], str]] = [
    # Strengths
    (lambda c: c.edit(Z, {"Smiling": None}), TypeError, "the strength of 'Smiling' must be a number, not None"),
    (lambda c: c.edit(Z, {"Smiling": "1"}), TypeError, "the strength of 'Smiling' must be a number, not the str '1'"),
    (
        lambda c: c.edit(Z, {"Smiling": True}),
        TypeError,
        "the strength of 'Smiling' must be a number, not the bool True",
    ),
    (lambda c: c.edit(Z, {"Smiling": 1j}), TypeError, "the strength of 'Smiling' must be a number, not the complex 1j"),
    (lambda c: c.edit(Z, {"Smiling": 1e39}), ValueError, f"the strength of 'Smiling' {BEYOND}1e+39"),
    (lambda c: c.edit(Z, {"Smiling": 10**400}), ValueError, f"the strength of 'Smiling' {BEYOND}1000"),
    (lambda c: c.edit(Z, {"Smiling": np.nan}), ValueError, f"the strength of 'Smiling' {BEYOND}nan"),
    (lambda c: c.edit(Z, [(Z[0], -np.inf)]), ValueError, f"the strength of edits[0] {BEYOND}-inf"),
    # Edits
    (lambda c: c.edit(Z, "Smiling"), TypeError, "for example {'Smiling': 1.5}, or pairs, for example"),
    (lambda c: c.edit(Z, "Smiling"), TypeError, ", not the str 'Smiling'"),
    (lambda c: c.edit(Z, None), TypeError, "edits must be strengths by name, for"),
    (lambda c: c.edit(Z, ["Smiling"]), TypeError, "; edits[0] is the str 'Smiling'"),
    (lambda c: c.edit(Z, [("Smiling", 1), ("Male",)]), TypeError, "; edits[1] is the tuple ('Male',)"),
    (lambda c: c.edit(Z, {7: 1}), TypeError, "edits[0] must have the name of an attribute, or an array float32 [D], n"),
    (lambda c: c.edit(Z, [(Z, 1)]), ValueError, "edits[0]: the direction must be float32 [D], not float32 [2, 3]"),
    (lambda c: c.edit(Z, [(beyond()[1], 1)]), ValueError, f"edits[0]: the direction[2] {BEYOND}1e+40"),
    (lambda c: c.edit(Z, {"Smiling": 1}, keep="Male"), TypeError, "keep takes several names, for example ['Male'], no"),
    (lambda c: c.edit(Z, {"Smiling": 1}, keep=None), TypeError, "for example ['Male'], not None"),
    (lambda c: c.edit(Z, {"Smiling": 1}, keep=["Male", 7]), TypeError, "keep[1] must be a string, not the int 7"),
    # Latents
    (lambda c: c.decode([[0.0] * 3]), TypeError, "latents must be an array, float32 [N, D], not the list [["),
    (lambda c: c.decode([[0.0] * 3]), TypeError, "; make it one: np.asarray(latents, np.float32)"),
    (lambda c: c.decode(None), TypeError, "latents must be an array, float32 [N, D], not None"),
    (lambda c: c.decode(Z[0]), ValueError, "latents must be float32 [N, D], not float32 [3]"),
    (lambda c: c.decode(Z.astype(int)), ValueError, "latents must be float32 [N, D], not int64 [2, 3]"),
    (lambda c: c.decode(beyond()), ValueError, f"latents[1, 2] {BEYOND}1e+40"),
    (lambda c: c.interpolate(Z, beyond(), 3), ValueError, f"end[1, 2] {BEYOND}1e+40"),
    # Images
    (
        lambda c: c.encode(["a.jpg"]),
        TypeError,
        f"images[0] must be the bytes of an image file, not the str 'a.jpg'{READ_IT}",
    ),
    (
        lambda c: c.encode([FACE, Path("a")]),
        TypeError,
        "images[1] must be the bytes of an image file, not the PosixPath",
    ),
    (
        lambda c: c.encode([PICTURE]),
        TypeError,
        "images[0] must be the bytes of an image file, not the Image <PIL.Image",
    ),
    (lambda c: c.encode([PICTURE]), TypeError, "; pixels go in as one array, uint8 [N, S, S, 3]"),
    (lambda c: c.encode(PICTURE), TypeError, "or a list of image files as bytes, not the Image"),
    (lambda c: c.encode(FACE), TypeError, "not the bytes of one; put it in a list: [file]"),
    (lambda c: c.encode("a.jpg"), TypeError, f"not the str 'a.jpg'{READ_IT}"),
    (lambda c: c.encode(FLOAT_PIXELS), ValueError, "images must be uint8 [N, S, S, 3], not float32 [1, 8, 8, 3]"),
    (
        lambda c: c.edit(FLOAT_PIXELS, {"Smiling": 1}),
        ValueError,
        "source must be images, uint8 [N, S, S, 3], or latents, float32 [N, D], not float32 [1, 8, 8, 3]",
    ),
    (lambda c: c.interpolate(Z, Z.astype(int), 3), ValueError, "end must be float32 [N, D], not int64 [2, 3]"),
    (lambda c: c.stream().send("Smiling"), TypeError, "must be StreamEdit, not the str 'Smiling'"),
    (lambda c: c.sample(1, having="Smiling"), TypeError, "having takes several names, for example ['Smiling'], not t"),
    (lambda c: c.sample(1, lacking=[3]), TypeError, "lacking[0] must be a string, not the int 3"),
    # Numbers
    (lambda c: c.sample(-1), ValueError, "count must be from 1 to 4294967295, not -1"),
    (lambda c: c.sample(2**32), ValueError, "count must be from 1 to 4294967295, not 4294967296"),
    (lambda c: c.sample(1.5), TypeError, "count must be a whole number, not the float 1.5"),
    (lambda c: c.sample(True), TypeError, "count must be a whole number, not the bool True"),
    (lambda c: c.sample(1, seed=-1), ValueError, "seed must be from 0 to 18446744073709551615, not -1"),
    (lambda c: c.sample(1, seed=None), TypeError, "seed must be a whole number, not None"),
    (lambda c: c.sample(1, temperature=1e60), ValueError, "temperature must be from 0 to 10, not 1e+60"),
    (lambda c: c.interpolate(Z, Z, 1), ValueError, "steps must be from 2 to 4294967295, not 1"),
    (lambda c: c.decode_files(Z, "JPEG", 101), ValueError, "quality must be from 0 to 100, not 101"),
    (lambda c: c.decode_files(Z, "JPEG", "9"), TypeError, "quality must be a whole number, not the str '9'"),
    # Words
    (
        lambda c: c.decode_files(Z, "GIF"),
        ValueError,
        "file_format must be one of 'JPEG', 'PNG', 'WEBP', not the str 'GIF'",
    ),
    (lambda c: c.interpolate(Z, Z, 3, "straight"), ValueError, "walk must be one of 'linear', 'spherical', not the st"),
    (lambda c: c.sample(1, distribution=["auto"]), ValueError, "distribution must be one of 'auto', 'standard', 'fitt"),
    (lambda c: c.stream().send(StreamEdit(Z, quality=9)), ValueError, "quality is of JPEG and WebP files; give a "),
    # Options
    (lambda c: c.sample(1, priority="high"), ValueError, "priority must be one of 'normal', 'background', 'interactiv"),
    (lambda c: c.sample(1, timeout="5"), TypeError, "timeout must be a number, not the str '5'"),
    (
        lambda c: c.sample(1, timeout=0),
        ValueError,
        "timeout must be above 0 and at most 1e+09 s, or None for none, not 0",
    ),
    (lambda c: c.sample(1, timeout=1e10), ValueError, "at most 1e+09 s, or None for none, not 10000000000.0"),
    (lambda c: c.sample(1, model=7), TypeError, "model must be a string, not the int 7"),
    (lambda c: c.decode(Z, having=["Smiling"]), TypeError, "unknown options: having; there are: model, priority, time"),
    (lambda c: c.sample(1, modle="faces"), TypeError, "unknown options: modle; there are: model, priority, timeout, r"),
    (
        lambda c: c.stream(request_id=""),
        ValueError,
        "request_id must be 1 to 128 ASCII letters, digits and ._:/=+-, no",
    ),
]


@pytest.fixture(scope="module")
def nowhere() -> Any:
    """A client of no server: what it sent would be UNAVAILABLE."""
    return Client("127.0.0.1:1", retries=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("call", "kind", "message"), CASES, ids=[message[:60] for *_, message in CASES])
def test_what_cannot_be_sent_is_refused(
    nowhere: Any, call: Callable[[Any], object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call(nowhere)


@pytest.mark.parametrize("name", ["two words", "two\nlines", "Zoë", "a,b", "x" * 129, "(1)", ""])
def test_request_ids_that_the_server_would_replace_are_refused(nowhere: Any, name: str) -> None:
    with pytest.raises(ValueError, match="request_id must be 1 to 128 ASCII letters, digits and"):
        nowhere.model(request_id=name)


@pytest.mark.parametrize("name", ["x" * 128, "order-66/a", "A.b_c:d=e+f"])
def test_all_other_request_ids_are_the_servers_too(server: ServerProcess, name: str) -> None:
    with Client(server.target) as client, pytest.raises(ClientError) as refusal:
        client.model(model="absent", request_id=name)
    assert refusal.value.request_id == name


def test_numbers_and_sequences_of_other_kinds_are_fine(server: ServerProcess) -> None:
    images = random_images(2, seed=1)
    latents = latents_of(images)
    with Client(server.target) as client:
        expected = client.edit_latents(latents, {"Smiling": 1.5})
        strengths: list[Any] = [np.float32(1.5), np.float64(1.5), Fraction(3, 2), np.array(1.5)]
        for strength in strengths:
            np.testing.assert_array_equal(client.edit_latents(latents, {"Smiling": strength}), expected)
        wide: Any = latents.astype(np.float64)
        np.testing.assert_array_equal(client.edit_latents(wide, iter([["Smiling", 1.5]])), expected)  # type: ignore[arg-type]
        np.testing.assert_array_equal(client.decode(wide[::-1]), images[::-1])
        assert client.sample_latents(np.int64(2), seed=2**64 - 1).shape == (2, LATENT_DIM)  # type: ignore[arg-type]
