"""The page's files and socket: a real page between a real server and what stands for a browser."""

import http.client
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import smile_more
from fuzzing.files import file_of
from pages import PageProcess, visit
from PIL import Image
from scripts import require_refused
from servers import ROOT, ServerProcess, run_python, server_of
from tiny_model import images_of, latents_of, random_images, tiny_directions
from websockets.exceptions import ConnectionClosed, InvalidStatus

from engine.client import Client
from engine.images import encode_file

PHOTOS = random_images(2, seed=4)


@pytest.fixture(scope="module")
def page(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageProcess]:
    with PageProcess(server.target, tmp_path_factory.mktemp("page"), ["--max-visitors", "3"]) as process:
        yield process


def get(page: PageProcess, path: str, host: str | None = None) -> tuple[int, dict[str, str], str]:
    """What the page answers to a path that no client tidies up first."""
    connection = http.client.HTTPConnection(page.place, timeout=60)
    connection.request("GET", path, headers={"Host": host or page.place})
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()


def test_its_files_are_whole_and_from_nowhere_else(page: PageProcess) -> None:
    status, headers, text = get(page, "/")
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    names = {path.name for path in (ROOT / "engine" / "page" / "static").iterdir()}
    texts = [text] + [get(page, f"/{name}")[2] for name in names - {"index.html"}]
    assert all(texts)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", "".join(texts))
    linked = set(re.findall(r'(?:src|href)="([^"]+)"', text)) | set(re.findall(r'from "\./([^"]+)"', "".join(texts)))
    assert linked == names - {"index.html"}


@pytest.mark.parametrize(
    "path", ["/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "//etc/passwd", "/static/../../app.py"]
)
def test_nothing_beside_its_files_can_be_had(page: PageProcess, path: str) -> None:
    assert get(page, path)[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "[", "a b"])
def test_it_answers_to_its_own_names_only(page: PageProcess, host: str) -> None:
    status, _, text = get(page, "/", host or " ")
    assert (status, "--allow-host" in text) in ((403, True), (400, False))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:80", "10.1.2.3"])
def test_addresses_are_names_of_its_own(page: PageProcess, host: str) -> None:
    assert get(page, "/", host)[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1"])
def test_only_the_page_itself_opens_its_socket(page: PageProcess, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused, visit(page, origin):
        pass
    assert refused.value.response.status_code == 403


def test_a_photo_is_framed_edited_kept_and_blended(page: PageProcess) -> None:
    smile, glasses = tiny_directions()["Smiling"], tiny_directions()["Eyeglasses"]
    first, second = (latents_of(PHOTOS[index : index + 1]) for index in (0, 1))
    with visit(page) as visitor:
        model, _ = visitor.ask("model")
        assert (model["size"], model["attributes"]) == (8, ["Smiling", "Eyeglasses", "Male"])
        assert (visitor.images("photo", encode_file(PHOTOS[0], "PNG"), slot="face") == PHOTOS[0]).all()
        assert (visitor.images("edit") == PHOTOS[0]).all()
        edited = visitor.images("edit", strengths={"Smiling": 1.5, "Eyeglasses": -1})
        assert (edited == images_of(first + np.float32(1.5) * smile - glasses)).all()
        with Client(f"{model['target']}") as client:
            kept = client.edit(PHOTOS[:1], {"Smiling": 2}, keep=["Male"])
        assert (visitor.images("edit", strengths={"Smiling": 2}, keep=["Male"]) == kept).all()
        assert (visitor.images("photo", encode_file(PHOTOS[1], "PNG"), slot="other") == PHOTOS[1]).all()
        blended = visitor.images("edit", strengths={"Smiling": 1}, mix=0.25)
        assert (blended == images_of(np.float32(0.75) * first + np.float32(0.25) * second + smile)).all()


def test_drawn_faces_come_back_by_their_seed(page: PageProcess, server: ServerProcess) -> None:
    with Client(server.target) as client:
        drawn = client.sample(4, seed=3, temperature=9)
    with visit(page) as visitor:
        visitor.ask("model")
        assert (visitor.images("samples", count=4, seed=3, temperature=9) == drawn).all()
        assert (visitor.images("sample", slot="face", seed=3, pick=2, temperature=9) == drawn[2:3]).all()
        assert (visitor.images("edit") == drawn[2:3]).all()


def test_drawn_faces_meet_conditions(page: PageProcess, server: ServerProcess) -> None:
    conditions: dict[str, Any] = {"having": ["Smiling"], "lacking": ["Male"]}
    with Client(server.target) as client:
        drawn = client.sample(4, seed=3, having=["Smiling"], lacking=["Male"])
        assert (drawn != client.sample(4, seed=3)).any()
    with visit(page) as visitor:
        assert visitor.ask("model")[0]["conditions"] == ["Smiling", "Eyeglasses", "Male"]
        assert (visitor.images("samples", count=4, seed=3, **conditions) == drawn).all()
        assert (visitor.images("sample", slot="face", seed=3, pick=2, **conditions) == drawn[2:3]).all()
        for bad, said in (({"having": "Smiling"}, "having"), ({"lacking": [1]}, "lacking"), ({"having": ["x"]}, "'x'")):
            told, _ = visitor.ask("samples", count=4, seed=3, **bad)
            assert said in told["error"]


def test_visitors_know_nothing_of_each_other_and_are_forgotten(page: PageProcess) -> None:
    with visit(page) as one, visit(page) as other:
        for index, visitor in enumerate((one, other)):
            visitor.ask("model")
            visitor.images("photo", encode_file(PHOTOS[index], "PNG"), slot="face")
        assert (one.images("edit") == PHOTOS[0]).all()
        assert (other.images("edit") == PHOTOS[1]).all()
    with visit(page) as visitor:
        visitor.ask("model")
        assert "no face yet" in visitor.ask("edit")[0]["error"]


def test_only_so_many_are_let_in(page: PageProcess) -> None:
    with visit(page) as one, visit(page) as two, visit(page) as three:
        for visitor in (one, two, three):
            visitor.ask("model")
        with visit(page) as fourth, pytest.raises(ConnectionClosed) as closed:
            fourth.ask("model")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013
        assert closed.value.rcvd.reason == "The page serves 3 at a time, and is full."


@pytest.mark.parametrize(
    ("ask", "fields", "sentence"),
    [
        ("photo", {"slot": "face"}, "The photo is not a JPEG, PNG or WebP file"),
        ("photo", {"slot": "moon"}, "slot must be one of"),
        ("edit", {"strengths": {"Bald": 1}}, "'Bald'"),
        ("edit", {"strengths": {"Smiling": float("nan")}}, "the strength of 'Smiling' must be a finite"),
        ("edit", {"strengths": 3}, "edits must be strengths by name"),
        ("edit", {"mix": 2}, "mix must be from 0 to 1"),
        ("edit", {"strengths": {"Male": 1}, "keep": ["Male"]}, "Male"),
        ("sample", {"slot": "face", "seed": -1, "pick": 0}, "seed must be from 0"),
        ("samples", {"count": 10**9, "seed": 1}, "count must be from 1 to 24"),
        ("everything", {}, "ask must be one of"),
        (None, {}, "ask must be a string"),
    ],
)
def test_what_is_wrong_is_a_sentence_and_the_session_goes_on(
    page: PageProcess, ask: str, fields: dict[str, object], sentence: str
) -> None:
    with visit(page) as visitor:
        visitor.ask("model")
        visitor.images("photo", encode_file(PHOTOS[0], "PNG"), slot="face")
        told, pixels = visitor.ask(ask, b"no picture" if ask == "photo" else None, **fields)
        assert sentence in told["error"]
        assert not pixels.size
        assert "retry_s" not in told
        assert (visitor.images("edit") == PHOTOS[0]).all()


@pytest.mark.parametrize("message", ["no JSON", "[1]", b"\n", "[" * 60_000, '"' + "x" * 70_000 + '"'])
def test_a_message_that_is_none_ends_the_session(page: PageProcess, message: str | bytes) -> None:
    with visit(page) as visitor:
        visitor.socket.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            visitor.socket.recv(timeout=60)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1007


def test_a_photo_is_bounded_in_bytes_and_pixels(server: ServerProcess, tmp_path: Path) -> None:
    with PageProcess(server.target, tmp_path, ["--max-photo-bytes", "65536"]) as page:
        with visit(page) as visitor:
            assert visitor.ask("model")[0]["max_photo_bytes"] == 65536
            assert (
                "more than the accepted"
                in visitor.ask("photo", file_of(Image.new("L", (6000, 4001))), slot="face")[0]["error"]
            )
        with visit(page) as visitor, pytest.raises(ConnectionClosed):
            visitor.ask("photo", bytes(200_000), slot="face")


def test_it_recovers_from_a_server_that_goes_comes_and_changes(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (tmp_path / "tokens").write_text("page 0123456789abcdef\n")
    (tmp_path / "token").write_text("0123456789abcdef\n")
    options = ["--token-file", str(tmp_path / "token")]
    with PageProcess(f"127.0.0.1:{port}", tmp_path, options) as page, visit(page) as visitor:
        told, _ = visitor.ask("model")
        assert (told["error"], told["retry_s"]) == (f"The server at 127.0.0.1:{port} can't be reached.", 1.0)
        with server_of(bundle, tmp_path, "--tokens", str(tmp_path / "tokens"), port=port) as server:
            while "error" in visitor.ask("model")[0]:
                pass
            visitor.images("photo", encode_file(PHOTOS[0], "PNG"), slot="face")
            assert (visitor.images("edit") == PHOTOS[0]).all()
            server.kill()
            assert "can't be reached" in visitor.ask("edit")[0]["error"]
        with server_of(bundle, tmp_path, "--tokens", str(tmp_path / "tokens"), port=port) as server:
            while "error" in (told := visitor.ask("edit")[0]):
                assert "retry_s" in told
            assert (visitor.images("edit") == PHOTOS[0]).all()
            smile_more(bundle, 2)
            server.hang_up()
            while not (told := visitor.ask("edit")[0]).get("reload"):
                assert "error" not in told
            visitor.ask("model")
            assert "no face yet" in visitor.ask("edit")[0]["error"]


def test_a_busy_server_and_a_missing_token_are_told(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("page 0123456789abcdef\n")
    with (
        server_of(tiny_bundle, tmp_path, "--max-images-per-second", "0.01") as server,
        PageProcess(server.target, tmp_path) as page,
        visit(page) as visitor,
    ):
        visitor.ask("model")
        visitor.images("samples", count=1, seed=1)
        told, _ = visitor.ask("samples", count=1, seed=1)
        assert (told["error"], told["retry_s"] > 1) == ("The server is busy.", True)
    with (
        server_of(tiny_bundle, tmp_path, "--tokens", str(tmp_path / "tokens")) as server,
        PageProcess(server.target, tmp_path) as page,
        visit(page) as visitor,
    ):
        assert "wants another token" in visitor.ask("model")[0]["error"]


def test_signals_end_it_in_order(server: ServerProcess, tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with PageProcess(server.target, tmp_path) as page, visit(page) as visitor:
            visitor.ask("model")
            page.process.send_signal(number)
            assert page.process.wait(60) == 0
            assert page.log == ""


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--target", "nowhere"], "--target 'nowhere': it has no port"),
        (["--port", "99999"], "--port must be from 0 to 65535, not 99999"),
        (["--max-visitors", "0"], "--max-visitors must be from 1"),
        (["--token", "two words"], "--token must be one word"),
        (["--tls-ca", "/nowhere"], "/nowhere can't be used: no such file or directory"),
        (["--host", "no.such.host.invalid"], "can't listen on no.such.host.invalid:8080"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(tmp_path: Path, options: list[str], sentence: str) -> None:
    result = run_python(["-m", "engine.page", *options], tmp_path)
    require_refused(result, sentence)
    assert result.stdout == ""


def test_another_host_is_a_note(server: ServerProcess, tmp_path: Path) -> None:
    with PageProcess(server.target, tmp_path, ["--host", "0.0.0.0", "--allow-host", "faces.example"]) as page:
        assert page.log.startswith("note: --host 0.0.0.0: whoever reaches this machine can use the page")
        page.url = page.url.replace("0.0.0.0", "127.0.0.1")
        assert get(page, "/", "faces.example")[0] == 200


def test_a_missing_extra_is_one_sentence() -> None:
    code = "import runpy, sys; sys.modules['uvicorn'] = None; runpy.run_module('engine.page', run_name='__main__')"

    def start(*options: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", code, *options]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    result = start()
    assert result.returncode == 2
    assert result.stderr == "error: the page needs uvicorn, which is not installed; pip install 'dfc-vae[page]'\n"
    assert "--max-visitors" in start("--help").stdout
