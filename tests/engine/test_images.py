import asyncio
import io
import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing.files import file_of, mend_png
from PIL import Image
from servers import run_python
from torchvision import transforms

from engine.errors import InvalidRequest
from engine.images import MAX_FILE_PIXELS, Codec, PixelBudget, decode_file, encode_file
from framing import Frame, prepare, to_rgb


@pytest.fixture(autouse=True)
def _leave_pillow_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("crop", [148, 147, 149])
@pytest.mark.parametrize("size", [(178, 218), (179, 219), (149, 149), (200, 151), (317, 1024)])
def test_cropping_is_that_of_torchvision(size: tuple[int, int], crop: int) -> None:
    image = picture(*size)
    reference = transforms.Compose([transforms.CenterCrop(crop), transforms.Resize(64)])(image)
    np.testing.assert_array_equal(prepare(image, Frame(64, crop)), np.asarray(reference))


@pytest.mark.parametrize("image_size", [64, 128])
@pytest.mark.parametrize("size", [(64, 64), (65, 64), (63, 99), (178, 218), (218, 179), (1001, 333), (40, 31)])
def test_resizing_without_a_crop_is_that_of_torchvision(size: tuple[int, int], image_size: int) -> None:
    image = picture(*size)
    reference = transforms.Compose([transforms.Resize(image_size), transforms.CenterCrop(image_size)])(image)
    np.testing.assert_array_equal(prepare(image, Frame(image_size)), np.asarray(reference))


@pytest.mark.parametrize("mode", ["L", "CMYK", "YCbCr", "1"])
@pytest.mark.parametrize("crop", [20, None])
def test_opaque_modes_become_rgb_as_pillow_converts_them(mode: str, crop: int | None) -> None:
    image = picture(25, 30, mode)
    assert image.mode == mode
    np.testing.assert_array_equal(prepare(image, Frame(16, crop)), prepare(image.convert("RGB"), Frame(16, crop)))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
@pytest.mark.parametrize("crop", [20, None])
def test_transparent_modes_stand_on_white(mode: str, crop: int | None) -> None:
    image = picture(25, 30, mode)
    pixels = np.asarray(image.convert("RGBA"), np.float64)
    alpha = pixels[..., 3:] / 255
    on_white = Image.fromarray((pixels[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8))
    np.testing.assert_allclose(prepare(image, Frame(16, crop)), prepare(on_white, Frame(16, crop)).astype(int), atol=1)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_large_images_become_rgb_as_small_ones_do(mode: str) -> None:
    image = picture(1100, 2003, mode)
    parts = [np.asarray(to_rgb(image.crop((0, top, 1100, min(top + 700, 2003))))) for top in (0, 700, 1400)]
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.concatenate(parts))


def test_encoding_keeps_pixels_where_the_format_does() -> None:
    pixels = prepare(picture(64, 64), Frame(64))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_file(pixels, "PNG")))), pixels)
    sizes = [len(encode_file(pixels, "JPEG", quality)) for quality in (10, 95)]
    assert sizes[0] < sizes[1]
    for file_format in ("JPEG", "WEBP"):
        decoded = Image.open(io.BytesIO(encode_file(pixels, file_format)))
        assert (decoded.format, decoded.size) == (file_format, (64, 64))


def test_a_small_image_is_refused_with_its_size_and_the_mend() -> None:
    with pytest.raises(
        InvalidRequest, match=r"is 100x160 pixels, smaller than the crop of 148 .* or one of 64x64 that"
    ):
        decode_file(file_of(picture(100, 160), "PNG"), Frame(64, 148))


@pytest.mark.parametrize("file_format", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused_by_name(file_format: str) -> None:
    with pytest.raises(InvalidRequest, match=f"is a {file_format} file, not a JPEG, PNG or WebP file; convert it"):
        decode_file(file_of(picture(20, 20), file_format), Frame(16))


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        (b"\0\0\0\x18ftypheic", "a HEIC file"),
        (b"\0\0\0\x18ftypmif1", "a HEIC file"),
        (b"\0\0\0\x1cftypavif", "an AVIF file"),
        (b"%PDF-1.7", "a PDF file"),
        (b"<!doctype html>", "text"),
    ],
)
def test_what_people_have_is_named(file: bytes, kind: str) -> None:
    with pytest.raises(InvalidRequest, match=f"is {kind}, not a JPEG, PNG or WebP file; convert it"):
        decode_file(file + bytes(100), Frame(16))


def test_garbage_and_nothing_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="it starts with 00 01 02 03"):
        decode_file(bytes(range(100)), Frame(16))
    with pytest.raises(InvalidRequest, match="is empty; send a picture"):
        decode_file(b"", Frame(16))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_truncated_files_are_refused(file_format: str) -> None:
    file = file_of(picture(60, 60), file_format)
    with pytest.raises(InvalidRequest, match=r"is damaged or truncated|is not a JPEG, PNG or WebP file"):
        decode_file(file[: len(file) // 2], Frame(16))


def claiming(file_format: str, width: int, height: int) -> bytes:
    """A file of a few pixels whose header claims many."""
    if file_format.startswith("WEBP"):
        profile = b"profile" if file_format == "WEBP VP8X" else b""
        options: dict[str, Any] = {"lossless": file_format == "WEBP VP8L", "icc_profile": profile}
        file = bytearray(file_of(Image.new("RGB", (16, 16)), "WEBP", **options))
        assert file[12:16] == file_format[5:].ljust(4).encode()
        if file_format == "WEBP VP8X":
            file[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        elif file_format == "WEBP VP8L":
            file[21:25] = ((width - 1) | (height - 1) << 14).to_bytes(4, "little")
        else:
            file[26:30] = width.to_bytes(2, "little") + height.to_bytes(2, "little")
        return bytes(file)
    file = bytearray(file_of(Image.new("L", (1, 1)), file_format))
    if file_format == "PNG":
        return mend_png(bytes(file[:16]) + struct.pack(">LL", width, height) + bytes(file[24:]))
    start = file.index(b"\xff\xc0") + 5
    file[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(file)


FORMS = ["JPEG", "PNG", "WEBP VP8", "WEBP VP8L", "WEBP VP8X"]


@pytest.mark.parametrize("file_format", FORMS)
@pytest.mark.parametrize("limit", [MAX_FILE_PIXELS, 255_999_999])
def test_decompression_bombs_are_refused_unread(file_format: str, limit: int) -> None:
    # 256 million pixels are more than Pillow accepts by itself, which must not be what is said.
    with pytest.raises(InvalidRequest, match=f"is 16000x16000 pixels, more than the accepted {limit}; make it smaller"):
        decode_file(claiming(file_format, 16_000, 16_000), Frame(16), limit)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_it_is_the_operators_limit_that_counts(file_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_of(picture(61, 47), file_format)
    expected = prepare(Image.open(io.BytesIO(file)), Frame(16))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    np.testing.assert_array_equal(decode_file(file, Frame(16), 61 * 47), expected)
    with pytest.raises(InvalidRequest, match="is 61x47 pixels, more than the accepted 2866"):
        decode_file(file, Frame(16), 61 * 47 - 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_codec_keeps_order_and_names_the_bad_file(threads: int) -> None:
    async def run() -> None:
        codec = Codec(Frame(16, 20), threads)
        files = [file_of(picture(20 + index, 30), "PNG") for index in range(7)]
        images = await codec.decode(files)
        np.testing.assert_array_equal(images, [decode_file(file, Frame(16, 20)) for file in files])
        encoded = await codec.encode(images, "PNG", 95)
        np.testing.assert_array_equal([decode_file(file, Frame(16)) for file in encoded], images)
        with pytest.raises(InvalidRequest, match=r"images\.files\[5\] is not a JPEG"):
            await codec.decode([*files[:5], b"not an image", files[6]])
        codec.close()

    asyncio.run(run())


class Table:
    """Where the files of requests lie; they can be taken from it while it is open. Remembers who took one."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self._arrived = threading.Semaphore(0)
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    async def wait_for(self, count: int) -> None:
        """Waits until so many more were asked for."""
        for _ in range(count):
            await asyncio.get_running_loop().run_in_executor(None, self._arrived.acquire)

    def files(self, name: str, count: int, file: bytes) -> "Sequence[bytes]":
        table = self

        class Files(Sequence[bytes]):
            def __len__(self) -> int:
                return count

            def __getitem__(self, index: Any) -> Any:
                table.taken.append(name)
                table._arrived.release()
                table._open.wait()
                return file

        return Files()


GOOD, BAD = file_of(picture(20, 20), "PNG"), b"not an image"


def with_codec(threads: int, steps: Callable[[Callable[..., "asyncio.Task[Any]"], Table], Any]) -> Table:
    """Runs steps that ask a codec for files of a name, as a client; gives the table when the codec has ended."""
    table = Table()

    async def run() -> None:
        codec = Codec(Frame(16, 20), threads)

        async def decode(client: str, name: str, count: int, file: bytes) -> Any:
            return await codec.decode(table.files(name, count, file), client=client)

        def ask(client: str, name: str, count: int = 1, file: bytes = GOOD) -> "asyncio.Task[Any]":
            return asyncio.get_running_loop().create_task(decode(client, name, count, file))

        await steps(ask, table)
        table.open()
        await asyncio.get_running_loop().run_in_executor(None, codec.close)

    asyncio.run(run())
    return table


def test_a_client_waits_for_one_turn_of_another() -> None:
    async def steps(ask: Callable[..., "asyncio.Task[Any]"], table: Table) -> None:
        many = [ask("a", f"a{index}", 50) for index in range(5)]
        await table.wait_for(2)
        few = ask("b", "b", 2)
        await asyncio.sleep(0)
        table.open()
        await asyncio.gather(few, *many)

    taken = with_codec(2, steps).taken
    assert len(taken) == 252
    assert [name[0] for name in taken[:6]].count("b") == 2, taken[:10]  # two are at work; then each has a turn


def test_requests_of_a_client_take_turns() -> None:
    async def steps(ask: Callable[..., "asyncio.Task[Any]"], table: Table) -> None:
        many = ask("a", "many", 50)
        await table.wait_for(1)
        few = ask("a", "few", 3)
        await asyncio.sleep(0)
        table.open()
        await asyncio.gather(few, many)

    taken = with_codec(1, steps).taken
    assert taken[:7].count("few") == 3, taken[:10]


def test_nothing_of_a_cancelled_request_is_decoded_later() -> None:
    async def steps(ask: Callable[..., "asyncio.Task[Any]"], table: Table) -> None:
        given_up, other = ask("a", "given up", 50), ask("a", "other", 3)
        await table.wait_for(2)
        given_up.cancel()
        table.open()
        assert len(await other) == 3

    taken = with_codec(2, steps).taken
    assert taken.count("other") == 3
    assert taken.count("given up") <= 2


@pytest.mark.parametrize("threads", [1, 3])
def test_nothing_of_a_failed_request_is_decoded_later(threads: int) -> None:
    async def steps(ask: Callable[..., "asyncio.Task[Any]"], table: Table) -> None:
        failing, other = ask("a", "failing", 50, BAD), ask("a", "other", 3)
        table.open()
        with pytest.raises(InvalidRequest, match=r"images\.files\[\d\] is not a JPEG"):
            await failing
        assert len(await other) == 3

    taken = with_codec(threads, steps).taken
    assert taken.count("failing") <= 2 * threads
    assert taken.count("other") == 3


def _jpeg(marker: int, bits: int, height: int, width: int) -> bytes:
    """The start of a JPEG file, to its frame's header."""
    frame = bytes([bits]) + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\x01\x01\x11\x00"
    return b"\xff\xd8\xff\xe0\x00\x04\0\0\xff" + bytes([marker]) + (len(frame) + 2).to_bytes(2, "big") + frame


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_jpeg(0xC1, 12, 8, 8), "is a JPEG file of 12 bits a value, which"),
        (_jpeg(0xC3, 8, 8, 8), "is a lossless or hierarchical JPEG file"),
        (_jpeg(0xC0, 8, 0, 8), "is a JPEG file of 8x0 pixels"),
        (_jpeg(0xC5, 8, 8, 8), "is a lossless or hierarchical JPEG file"),
        (b"\xff\xd8\xff\xc3", "is a lossless or hierarchical JPEG file"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(8) + b"\x08\x02\0\0\0" + bytes(4), "is a PNG file of 0x0 pixels"),
    ],
)
def test_files_of_kinds_that_cannot_be_read_are_called_what_they_are(data: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        decode_file(data, Frame(8))


def test_files_wait_for_pixels_that_others_take() -> None:
    budget = PixelBudget(100)
    entered: list[int] = []

    def take(pixels: int) -> None:
        with budget.taken(pixels):
            entered.append(pixels)

    with ThreadPoolExecutor(2) as pool:
        with budget.taken(60):
            small = pool.submit(take, 40)
            small.result()
            large = pool.submit(take, 500)
            behind = pool.submit(take, 1)
            time.sleep(0.05)
            assert entered == [40], "what comes behind a large file doesn't overtake it"
        large.result()
        behind.result()
    assert sorted(entered) == [1, 40, 500]


def test_closing_does_not_wait_for_work_whose_client_has_gone() -> None:
    began, go = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        go.wait(20)

    async def scenario() -> None:
        codec = Codec(Frame(8, None), 1)
        working = asyncio.ensure_future(codec.work(work))
        await asyncio.get_running_loop().run_in_executor(None, began.wait)
        working.cancel()
        codec.close()
        assert not go.is_set()
        go.set()

    safety = threading.Timer(10, go.set)  # a close that waits ends, too, and fails
    safety.start()
    asyncio.run(scenario())
    safety.cancel()


_DECODE_WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from engine.images import open_file

data = Path(sys.argv[1]).read_bytes()
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 60 * 2**20,) * 2)
with open_file(data):
    pass
"""


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [("RGB", "PNG", {}), ("RGB", "WEBP", {"lossless": True}), ("CMYK", "JPEG", {"progressive": True})],
)
def test_too_little_memory_is_no_fault_of_the_file(tmp_path: Path, mode: str, form: str, options: Any) -> None:
    (tmp_path / "file").write_bytes(file_of(Image.new(mode, (4000, 4000)), form, **options))
    told = run_python(["-c", _DECODE_WITH_LITTLE_MEMORY, str(tmp_path / "file")], tmp_path)
    assert "MemoryError" in told.stderr.strip().splitlines()[-1], told.stderr
