"""The page as its visitors have it: a real browser without a screen, a real page, a real server."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundles import drop_attributes, mix_directions, write_tiny_bundle
from pages import PageProcess
from PIL import Image
from servers import ServerProcess, server_of
from tiny_model import images_of, latents_of, tiny_directions

from engine.images import encode_file
from framing import CELEBA_SOURCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
GREY = np.full((8, 8, 3), 100, np.uint8)
SIDE = 64
"""Pixels of each side that canvases are read at."""

TIMEOUT_MS = 60_000
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
READ = """([selector, side]) => {
  const canvas = document.querySelector(selector), copy = document.createElement("canvas");
  copy.width = copy.height = side;
  copy.getContext("2d").drawImage(canvas, 0, 0, side, side);
  return [...copy.getContext("2d").getImageData(0, 0, side, side).data];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"there is no Chromium here (none of {', '.join(BROWSERS)}); apt-get install chromium")
    options = [*CAMERA, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=options)


@pytest.fixture(scope="module")
def site(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageProcess]:
    with PageProcess(server.target, tmp_path_factory.mktemp("site")) as process:
        yield process


@pytest.fixture
def visit(browser: Browser, site: PageProcess) -> Iterator[Callable[..., Page]]:
    """Opens the page, in a browser of its own, and waits until it is ready; nothing may go wrong in it unseen."""
    contexts: list[Any] = []
    faults: list[str] = []
    asked: list[str] = []

    def open_page(link: str = "", url: str = site.url, ready: bool = True, **options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url + link)
        if ready:
            wait_until_ready(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults
    assert not [url for url in asked if not url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:"))]


def wait_until_ready(page: Page) -> None:
    page.wait_for_selector("#status[data-state=ready]")
    page.wait_for_selector("#samples [aria-pressed]")


def photo(pixels: np.ndarray, name: str = "photo.png") -> Any:
    return {"name": name, "mimeType": "image/png", "buffer": encode_file(pixels, "PNG")}


def pixels_of(page: Page, which: str) -> np.ndarray:
    return np.array(page.evaluate(READ, [which, SIDE]), np.uint8).reshape(SIDE, SIDE, 4)[..., :3]


def wait_for_colour(page: Page, colour: tuple[int, int, int], which: str = "canvas.edited") -> None:
    """Waits until a canvas has one colour all over."""
    page.wait_for_function(
        f"([argument, colour]) => ({READ})(argument).every((level, index) => index % 4 === 3 || "
        "Math.abs(level - colour[index % 4]) <= 1)",
        arg=[[which, SIDE], colour],
    )


def slider(page: Page, name: str) -> Any:
    return page.get_by_role("slider", name=name, exact=True)


def test_a_photo_goes_in_a_slider_moves_and_the_picture_changes(visit: Callable[..., Page]) -> None:
    page = visit()
    page.set_input_files("#file", photo(GREY))
    wait_for_colour(page, (100, 100, 100), "canvas.original")
    wait_for_colour(page, (100, 100, 100))
    slider(page, "Smiling").focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    wait_for_colour(page, (110, 100, 100))
    assert slider(page, "Smiling").get_attribute("aria-valuetext") == "+1.00"
    slider(page, "Smiling").fill("-3")
    wait_for_colour(page, (70, 100, 100))
    wait_for_colour(page, (100, 100, 100), "canvas.original")
    page.get_by_role("button", name="Smiling back to 0").click()
    wait_for_colour(page, (100, 100, 100))


def test_that_a_photo_is_on_its_way_is_said(visit: Callable[..., Page]) -> None:
    page = visit()
    page.evaluate(
        """() => {
          window.said = [];
          const status = document.getElementById("status");
          const note = new MutationObserver(() => window.said.push(status.textContent));
          note.observe(status, { subtree: true, childList: true });
        }"""
    )
    page.set_input_files("#file", photo(GREY))
    wait_for_colour(page, (100, 100, 100))
    assert page.evaluate("window.said") == ["sending the photo", "ready"]


def test_a_kept_attribute_stays(visit: Callable[..., Page]) -> None:
    page = visit()
    page.set_input_files("#file", photo(GREY))
    slider(page, "Smiling").fill("3")
    wait_for_colour(page, (130, 100, 100))
    page.get_by_role("button", name="Keep: Male").click()
    assert slider(page, "Male").is_disabled()
    page.wait_for_function(f"argument => ({READ})(argument).some(level => level < 95)", arg=["canvas.edited", SIDE])
    page.get_by_role("button", name="Reset").click()
    wait_for_colour(page, (100, 100, 100))
    assert slider(page, "Male").is_enabled()


def test_original_and_edited_stand_side_by_side(visit: Callable[..., Page]) -> None:
    page = visit()
    page.set_input_files("#file", photo(GREY))
    slider(page, "Smiling").fill("3")
    wait_for_colour(page, (130, 100, 100))

    def seen(x: int) -> object:
        shot = io.BytesIO(page.locator("#picture").screenshot())
        return Image.open(shot).convert("RGB").getpixel((x, 40))

    assert (seen(60), seen(300)) == ((130, 100, 100), (130, 100, 100))
    page.get_by_text("Compare").click()
    assert (seen(60), seen(300)) == ((100, 100, 100), (130, 100, 100))
    slider(page, "Where the original ends and the edited face begins").fill("950")
    assert (seen(60), seen(300)) == ((100, 100, 100), (100, 100, 100))
    page.locator("#views").get_by_text("Edited").click()
    page.locator("#picture").hover()
    page.mouse.down()
    assert seen(300) == (100, 100, 100)
    page.mouse.up()
    assert seen(300) == (130, 100, 100)


def test_two_faces_blend(visit: Callable[..., Page]) -> None:
    page = visit()
    page.set_input_files("#file", photo(GREY))
    wait_for_colour(page, (100, 100, 100))
    page.get_by_role("button", name="Second face", exact=True).click()
    page.set_input_files("#file", photo(GREY + np.uint8(100)))
    wait_for_colour(page, (150, 150, 150))
    slider(page, "Blend").fill("0.2")
    wait_for_colour(page, (120, 120, 120))
    page.get_by_role("button", name="Remove the second face").click()
    wait_for_colour(page, (100, 100, 100))


def test_photos_are_dropped_taken_and_made_smaller(visit: Callable[..., Page]) -> None:
    page = visit()
    page.evaluate(
        """async (bytes) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
          for (const name of ["dragenter", "dragover", "drop"]) {
            document.body.dispatchEvent(new DragEvent(name, { dataTransfer: data, bubbles: true, cancelable: true }));
          }
        }""",
        list(photo(GREY + np.uint8(20))["buffer"]),
    )
    wait_for_colour(page, (120, 120, 120))
    page.get_by_role("button", name="Camera").click()
    page.wait_for_function("() => document.querySelector('video').videoWidth > 0")
    page.get_by_role("button", name="Take the photo").click()
    page.wait_for_function(f"argument => ({READ})(argument).some(level => level > 150)", arg=["canvas.original", SIDE])
    assert not page.locator("dialog").is_visible()
    page.set_input_files("#file", photo(np.full((4950, 4950), 140, np.uint8)))  # more pixels than the page accepts
    wait_for_colour(page, (140, 140, 140), "canvas.original")


def test_the_edited_face_can_be_downloaded(visit: Callable[..., Page], tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(50, 200, (8, 8, 3), np.uint8)
    page = visit()
    page.set_input_files("#file", photo(pixels))
    page.wait_for_function(f"argument => ({READ})(argument).some(level => level > 150)", arg=["canvas.edited", SIDE])
    slider(page, "Smiling").fill("1.5")
    page.wait_for_function("() => document.getElementById('status').textContent.includes('ms')")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the edited face").click()
    assert download.value.suggested_filename == "face_Smiling+1.5.png"
    download.value.save_as(tmp_path / "face.png")
    wanted = images_of(latents_of(pixels[np.newaxis]) + np.float32(1.5) * tiny_directions()["Smiling"])[0]
    assert (np.asarray(Image.open(tmp_path / "face.png").convert("RGB")) == wanted).all()


def test_a_link_restores_what_was_set(visit: Callable[..., Page]) -> None:
    page = visit()
    page.get_by_role("button", name="Draw others").click()
    page.get_by_role("button", name="Drawn face 3").click()
    slider(page, "Variety").fill("1.5")
    slider(page, "Eyeglasses").fill("2.4")
    page.get_by_role("button", name="Keep: Male").click()
    page.get_by_role("button", name="Second face", exact=True).click()
    page.get_by_role("button", name="Drawn face 5").click()
    page.wait_for_selector("#mix:not([disabled])")
    slider(page, "Blend").fill("0.3")
    form = r"#set=Eyeglasses:2.4&keep=Male&face=\d+:2:1.5&other=\d+:4:1.5&mix=0.3&seed=\d+&temperature=1.5"
    page.wait_for_function("form => RegExp(`^${form}$`).test(location.hash)", arg=form)
    link = "#" + page.url.partition("#")[2]
    again = visit(link)
    again.wait_for_selector("#mix:not([disabled])")
    for which in ("canvas.original", "canvas.edited", "#other canvas", "#samples button:last-child canvas"):
        end = time.monotonic() + TIMEOUT_MS / 1000
        while not (pixels_of(again, which) == pixels_of(page, which)).all():  # some are still being drawn, perhaps
            assert time.monotonic() < end, which
            again.wait_for_timeout(100)
    for name in ("Eyeglasses", "Male", "Smiling", "Blend", "Variety"):
        assert slider(again, name).input_value() == slider(page, name).input_value()
    assert slider(again, "Male").is_disabled()


def test_faces_are_drawn_under_conditions_also_from_a_link(visit: Callable[..., Page]) -> None:
    def shown(page: Page) -> np.ndarray:
        return np.array([pixels_of(page, which) for which in ("canvas.original", "#samples button:last-child canvas")])

    page = visit("#seed=3&face=3:0:0.8")
    unconditional = shown(page)
    page.get_by_text("With or without").click()
    for name in ("Smiling: either", "Male: either", "Male: with"):
        page.get_by_role("button", name=name, exact=True).click()
    page.get_by_text("with smiling, without male").wait_for()
    page.wait_for_function("() => location.hash.includes('without=Male')")
    link = "#" + page.url.partition("#")[2]
    conditions = "with=Smiling&{0}without=Male"
    assert link == f"#face=3:0:0.8&face-{conditions.format('face-')}&seed=3&temperature=0.8&{conditions.format('')}"
    again = visit(link)
    assert soon(lambda: np.array_equal(shown(again), shown(page)))
    assert (shown(page) != unconditional).any(axis=(1, 2, 3)).all()
    for name in ("Smiling: with", "Smiling: without", "Male: without"):
        page.get_by_role("button", name=name, exact=True).click()
    assert soon(lambda: np.array_equal(shown(page), unconditional))


def soon(holds: Callable[[], bool]) -> bool:
    """Whether something holds at last."""
    end = time.monotonic() + TIMEOUT_MS / 1000
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(0.1)
    return held


def test_a_link_may_name_attributes_that_the_model_has_not(visit: Callable[..., Page]) -> None:
    page = visit("#set=Gone:1&set=Smiling:1&keep=Gone&face=3:0:0.8&face-with=Gone&face-with=Male&seed=3&with=Gone")
    page.wait_for_function(f"argument => ({READ})(argument).some(level => level > 0)", arg=["canvas.edited", SIDE])
    assert page.locator("#notices").inner_text() == ""
    slider(page, "Variety").fill("1.2")
    page.wait_for_function("() => location.hash.includes('temperature=1.2')")
    assert "Gone" not in page.url


def test_a_link_of_a_photo_says_what_is_missing(visit: Callable[..., Page]) -> None:
    page = visit("#set=Smiling:1&set=Unknown:2&set=:&keep=Nobody&face=photo&mix=7&seed=x&temperature=")
    page.get_by_text("which a link doesn't hold").wait_for()
    page.set_input_files("#file", photo(GREY))
    wait_for_colour(page, (110, 100, 100))
    assert page.locator("#notices").inner_text() == ""
    page.wait_for_function("() => location.hash === '#set=Smiling:1&face=photo&seed=7&temperature=0.8'")


def test_what_is_no_picture_is_said_and_the_face_stays(visit: Callable[..., Page]) -> None:
    page = visit()
    page.set_input_files("#file", photo(GREY))
    wait_for_colour(page, (100, 100, 100))
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.get_by_text("The photo is not a JPEG, PNG or WebP file").wait_for()
    page.get_by_role("button", name="OK").click()
    slider(page, "Smiling").fill("1")
    wait_for_colour(page, (110, 100, 100))


def test_a_fault_of_the_settings_is_said_until_they_are_mended(
    visit: Callable[..., Page], tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "mixed")
    mix_directions(bundle)
    with server_of(bundle, tmp_path) as server, PageProcess(server.target, tmp_path) as site:
        page = visit("#set=Smiling:1&set=Male:1&keep=Eyeglasses", url=site.url)
        assert page.locator("#notices").inner_text() == ""
        page.get_by_role("button", name="Keep: Smiling").click()
        told = page.locator("#notices p")
        told.wait_for()
        assert told.inner_text().startswith("Nothing is left of 'Male' when Eyeglasses, Smiling must stay; keep fewer")
        page.get_by_role("button", name="Keep: Eyeglasses").click()
        told.wait_for(state="detached")


def test_it_recovers_by_itself(visit: Callable[..., Page], tiny_bundle: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with PageProcess(f"127.0.0.1:{port}", tmp_path) as site:
        page = visit(url=site.url, ready=False)
        page.get_by_text(f"The server at 127.0.0.1:{port} can't be reached.").wait_for()
        with server_of(tiny_bundle, tmp_path, port=port):
            wait_until_ready(page)
            assert page.locator("#notices").inner_text() == ""
            page.set_input_files("#file", photo(GREY))
            wait_for_colour(page, (100, 100, 100))
        slider(page, "Smiling").fill("2")
        page.get_by_text("can't be reached").wait_for()
        assert page.locator("#status").inner_text() == "trying again"
        with server_of(tiny_bundle, tmp_path, port=port):
            wait_for_colour(page, (120, 100, 100))
            page.wait_for_selector("#status[data-state=ready]")
            place = site.place.rpartition(":")[2]
            site.__exit__()
            page.get_by_text("The page's own server can't be reached.").wait_for()
            with PageProcess(f"127.0.0.1:{port}", tmp_path, ["--port", place]):
                wait_until_ready(page)
                slider(page, "Smiling").fill("3")
                wait_for_colour(page, (130, 100, 100))


def test_photos_are_sent_again_also_one_whose_file_is_gone_and_one_of_meanwhile(
    visit: Callable[..., Page], server: ServerProcess, tmp_path: Path
) -> None:
    with PageProcess(server.target, tmp_path) as site:
        page = visit(url=site.url)
        path = tmp_path / "Jürgens Foto.png"
        path.write_bytes(photo(GREY)["buffer"])
        page.set_input_files("#file", path)
        wait_for_colour(page, (100, 100, 100))
        path.unlink()
        place = site.place.rpartition(":")[2]
    page.get_by_text("The page's own server can't be reached.").wait_for()
    page.get_by_role("button", name="Second face", exact=True).click()
    page.set_input_files("#file", photo(GREY + np.uint8(100)))
    with PageProcess(server.target, tmp_path, ["--port", place]):
        wait_until_ready(page)
        wait_for_colour(page, (150, 150, 150))
        slider(page, "Smiling").fill("3")
        wait_for_colour(page, (180, 150, 150))


def test_a_photo_that_can_not_be_read_is_said(visit: Callable[..., Page], tmp_path: Path) -> None:
    page = visit()
    path = tmp_path / "photo.png"
    path.write_bytes(photo(GREY)["buffer"])
    page.evaluate(
        "document.getElementById('file').addEventListener('change', (event) => event.stopPropagation(), true)"
    )
    page.set_input_files("#file", path)
    path.unlink()
    page.evaluate(
        """() => {
          const drop = new Event("drop", { bubbles: true });
          drop.dataTransfer = { types: ["Files"], files: document.getElementById("file").files };
          document.body.dispatchEvent(drop);
        }"""
    )
    page.get_by_text("The photo can't be read. Is it a file, and still where it was?").wait_for()


def test_a_strip_of_pixels_is_refused_in_words(visit: Callable[..., Page]) -> None:
    page = visit()
    page.set_input_files("#file", photo(np.full((5000, 1, 3), 100, np.uint8)))
    page.get_by_text("The photo is 1x2048 pixels, too far from square; cut the face out first.").wait_for()


def test_a_link_without_a_second_face_forgets_it(visit: Callable[..., Page]) -> None:
    page = visit("#face=7:0:0.8&other=7:3:0.8&mix=0.5&seed=7&temperature=0.8")
    page.wait_for_selector("#mix:not([disabled])")
    page.evaluate("location.hash = '#face=7:1:0.8&seed=7&temperature=0.8'")
    page.wait_for_selector("#mix[disabled]")
    slider(page, "Variety").fill("1.2")
    page.wait_for_function("() => location.hash.includes('temperature=1.2')")
    page.wait_for_timeout(500)
    assert "other=" not in page.url
    assert slider(page, "Blend").is_disabled()


def test_a_model_without_attributes_says_so(visit: Callable[..., Page], tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    drop_attributes(bundle)
    with server_of(bundle, tmp_path) as server, PageProcess(server.target, tmp_path) as site:
        page = visit(url=site.url)
        page.get_by_text("This model has no attributes to edit.").wait_for()
        assert not page.get_by_role("button", name="Reset").is_visible()
        page.set_input_files("#file", photo(GREY))
        wait_for_colour(page, (100, 100, 100))
        assert page.locator("#notices").inner_text() == ""


def test_of_a_photo_without_a_face_the_middle_is_taken_if_that_is_wanted(
    visit: Callable[..., Page], tmp_path: Path
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", 148, CELEBA_SOURCE)
    with server_of(bundle, tmp_path) as server, PageProcess(server.target, tmp_path, aligns=True) as site:
        page = visit(url=site.url, viewport={"width": 390, "height": 740})
        for answer in ("Cancel", "Take its middle"):
            before = pixels_of(page, "canvas.original")
            page.set_input_files("#file", photo(np.full((300, 400, 3), 100, np.uint8)))
            page.get_by_text("The photo shows no face that can be found.").wait_for()
            np.testing.assert_array_equal(pixels_of(page, "canvas.original"), before)
            page.get_by_role("button", name=answer).click()
            assert page.locator("#notices").inner_text() == ""
        wait_for_colour(page, (100, 100, 100), "canvas.original")


def test_a_fast_drag_never_queues(visit: Callable[..., Page]) -> None:
    page = visit()
    page.set_input_files("#file", photo(GREY))
    wait_for_colour(page, (100, 100, 100))
    frames: list[str] = []

    def watch(opened: Any) -> None:
        opened.on("framesent", lambda _: frames.append("sent"))
        opened.on("framereceived", lambda _: frames.append("received"))

    page.on("websocket", watch)
    page.reload()
    wait_until_ready(page)
    page.set_input_files("#file", photo(GREY))
    wait_for_colour(page, (100, 100, 100))
    page.wait_for_timeout(300)
    frames.clear()
    page.evaluate(
        """() => {
          const slider = document.querySelector(".attribute input");
          for (let value = -3; value <= 3; value += 0.05) {
            slider.value = value;
            slider.dispatchEvent(new InputEvent("input", { bubbles: true }));
          }
        }"""
    )
    wait_for_colour(page, (130, 100, 100))
    assert frames == ["sent", "received", "sent", "received"]


@pytest.mark.parametrize("width", [320, 360, 820, 1000])
def test_no_width_scrolls_sideways(visit: Callable[..., Page], width: int) -> None:
    page = visit(viewport={"width": width, "height": 740}, has_touch=True, is_mobile=width < 800)
    page.set_input_files("#file", photo(GREY))
    page.get_by_role("button", name="Second face", exact=True).tap()
    page.get_by_role("button", name="Drawn face 2").tap()
    slider(page, "Smiling").fill("3")
    page.locator("#views").get_by_text("Compare").tap()
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture" * 9})
    page.get_by_text("The photo is not").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    wide = page.evaluate(
        "[...document.querySelectorAll('body *:not(#samples *)')].filter(one => one.getBoundingClientRect().right > "
        "innerWidth + 0.5).map(one => one.outerHTML)"
    )
    assert not wide


@pytest.mark.parametrize(("width", "height"), [(844, 390), (667, 331)])
def test_on_its_side_a_phone_shows_the_whole_picture_beside_the_sliders(
    visit: Callable[..., Page], width: int, height: int
) -> None:
    page = visit(viewport={"width": width, "height": height}, has_touch=True, is_mobile=True)
    slider(page, "Smiling").scroll_into_view_if_needed()
    boxes = page.evaluate(
        """() => ["#picture", "#views", "#download"].map((name) => {
          const { left, right, top, bottom } = document.querySelector(name).getBoundingClientRect();
          return { left, right, top, bottom };
        })"""
    )
    assert min(box["top"] for box in boxes) >= 0
    assert max(box["bottom"] for box in boxes) <= height
    assert boxes[1]["top"] == boxes[2]["top"], "in one row"
    moving = slider(page, "Smiling").bounding_box()
    assert moving is not None
    assert max(box["right"] for box in boxes) < moving["x"]


def test_a_low_window_has_room_for_every_row(visit: Callable[..., Page]) -> None:
    page = visit(viewport={"width": 1000, "height": 650})
    boxes = page.evaluate(
        """() => [".left", "#again", "#samples", "#views", "#download"].map((name) => {
          const { left, right, top } = document.querySelector(name).getBoundingClientRect();
          return { left, right, top };
        })"""
    )
    column, again, samples, views, download = boxes
    assert max(box["right"] for box in boxes) <= column["right"] + 0.5
    assert again["right"] == pytest.approx(samples["right"], abs=0.5)
    assert views["top"] == download["top"], "in one row"


def test_what_keys_reach_is_not_behind_the_picture(visit: Callable[..., Page]) -> None:
    page = visit(viewport={"width": 360, "height": 560})
    page.get_by_role("button", name="Keep: Male").focus()
    hidden = """() => new Promise((done) => requestAnimationFrame(() => {
      const one = document.activeElement, stage = document.querySelector(".stage");
      const above = stage.getBoundingClientRect().bottom - one.getBoundingClientRect().top;
      done(document.querySelector("main").contains(one) && !stage.contains(one) && above > 0);
    }))"""
    for _ in range(30):
        page.keyboard.press("Shift+Tab")
        assert not page.evaluate(hidden), page.evaluate("document.activeElement.outerHTML")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(visit: Callable[..., Page], scheme: str) -> None:
    page = visit(color_scheme=scheme)
    colours = "[...document.querySelectorAll('h1, h2, .soft, .attribute label, button:enabled, #status, .choice span')]"
    pairs = page.evaluate(
        colours
        + """.map(one => {
          const clear = (element) => getComputedStyle(element).backgroundColor === "rgba(0, 0, 0, 0)";
          let ground = one;
          while (ground && clear(ground)) ground = ground.parentElement;
          return [getComputedStyle(one).color, getComputedStyle(ground ?? document.body).backgroundColor];
        })"""
    )
    assert len(pairs) > 20
    for pair in pairs:
        lighter, darker = sorted((luminance(colour) for colour in pair), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, pair
    dark = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.1
    assert dark == (scheme == "dark")


def luminance(colour: str) -> float:
    """Of "rgb(...)", as WCAG defines it."""
    levels = np.array([int(level) for level in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_everything_has_a_name_and_is_reached_by_keys(visit: Callable[..., Page]) -> None:
    page = visit()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input:not([hidden])")].filter(one => one.checkVisibility() &&
          !(one.ariaLabel || one.labels?.length || one.textContent.trim())).map(one => one.outerHTML)"""
    )
    assert not nameless
    name = "(one => one.ariaLabel || one.labels?.[0]?.textContent || one.textContent.trim())(document.activeElement)"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(name))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        shadow = page.evaluate("document.activeElement.type === 'range' || document.activeElement.type === 'radio'")
        assert outline != "none" or shadow or page.evaluate("document.activeElement === document.body")
    wanted = {
        "Copy link",
        "Add a photo",
        "Camera",
        "Second face",
        "Drawn face 8",
        "Smiling",
        "Keep: Male",
        "Draw others",
    }
    assert wanted <= reached
