"""The quickstart itself, on few faces: every stage is the real command, the server and the client are processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scripts import Result, require_refused, running

from quickstart.__main__ import Quickstart, Stages, evaluate, main
from trainer.data import load_data

FIGURES = ("reconstructions", "samples_standard", "encoding_distribution")
STRIPS = ("adding_Smiling", "removing_Smiling", "adding_Eyeglasses", "removing_Eyeglasses")


Finished = tuple[Path, str]
"""A folder that a quickstart made, and what it printed."""


def flags(out: Path) -> list[str]:
    return ["--out", os.path.join(".", out), "--count", "120", "--epochs", "3"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished quickstart."""
    out = tmp_path_factory.mktemp("quickstart") / "out"
    command = [sys.executable, "-m", "quickstart", *flags(out)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return out, ended.stdout


@pytest.fixture
def quickstart(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """The command within this process, which has imported what takes seconds; its stages are processes all the same."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest's own handlers stay

    def run(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["quickstart", *words])
        return Result(words, main(), *capfd.readouterr())

    return run


def test_figures_and_metrics_are_left_and_printed(first: Finished) -> None:
    out, printed = first
    for name in (*FIGURES, *STRIPS):
        assert Image.open(out / f"{name}.png").width > 300
        assert f"{name}.png" in printed
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["reconstruction"]["images"] == 12
    assert metrics["parity"]
    assert metrics["peak_memory_mib"] > 0
    assert {(edit["attribute"], edit["strength"]) for edit in metrics["served_edits"]} == {
        (attribute, sign * 1.5) for attribute in ("Smiling", "Eyeglasses") for sign in (1, -1)
    }
    assert "PSNR" in printed
    assert "<html" in (out / "report.html").read_text()


def levels_between(images: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8]) -> int:
    return int(np.abs(images.astype(np.int16) - others).max())


def test_edited_images_came_from_the_server(first: Finished) -> None:
    out, _ = first
    jobs = json.loads((out / "order.json").read_text())
    with np.load(out / "edits.npz") as answers:
        for job in jobs:
            name = ("adding_" if job["strength"] > 0 else "removing_") + job["attribute"]
            before, after = answers[f"{name}/before"], answers[f"{name}/after"]
            assert before.shape == after.shape == (len(job["files"]), 64, 64, 3)
            assert (before != after).any()
            strips = answers[f"{name}/strips"]
            # Strength 0 is the reconstruction, and 1.5 the edit, both from latents: to rounding, as an edit of images
            # is one graph and that of latents another, and bfloat16 rounds coarsely.
            assert levels_between(strips[:, 0], before[: len(strips)]) <= 4
            assert levels_between(strips[:, 3], after[: len(strips)]) <= 4


def test_a_second_run_reuses_everything_but_the_edits(first: Finished, quickstart: Callable[..., Result]) -> None:
    out, _ = first
    made = [out / "run" / "model.safetensors", out / "bundle" / "manifest.json", out / "faces" / "faces.json"]
    times = [path.stat().st_mtime_ns for path in made]
    again = quickstart(*flags(out))
    assert again.returncode == 0, again.stderr
    assert [path.stat().st_mtime_ns for path in made] == times
    for stage in ("faces", "evaluation", "export"):
        assert f"{stage}: re-using" in again.stdout


def test_an_interrupted_training_writes_its_checkpoint_and_goes_on(first: Finished, tmp_path: Path) -> None:
    faces, out = first[0] / "faces", tmp_path / "out"
    command = [sys.executable, "-m", "quickstart", "--out", str(out), "--data", str(faces), "--epochs", "99"]
    ends: list[int] = []
    for signum, told in ((signal.SIGTERM, os.kill), (signal.SIGINT, os.killpg)):  # a terminal tells the whole group
        with running(command) as process:
            written = 0
            while written <= len(ends):  # steps of this run
                assert process.poll() is None
                time.sleep(0.1)
                written = len(list((out / "run").glob("events.out.tfevents.*")))
            told(process.pid, signum)
            _, said = process.communicate()
        assert process.returncode == 128 + signum, said
        (step,) = re.findall(rf"stopped by {signum.name} after step (\d+) of", said)
        ends.append(int(step))
    assert ends[0] < ends[1]


class Recorder(Stages):
    """Remembers commands instead of running them."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: list[tuple[object, ...]] = []

    def run(self, name: str, *arguments: object) -> None:
        self.commands.append(arguments)


def test_what_depends_on_a_changed_flag_is_measured_again(first: Finished) -> None:
    out, _ = first
    data = load_data(out / "faces", 64, 148)
    for strength, labelled, again in (
        (1.5, data, False),
        (2.5, data, True),
        (1.5, replace(data, fingerprint="x"), True),
    ):
        stages = Recorder()
        evaluate(Quickstart(out=out, strength=strength), out / "faces", labelled, out / "run", stages)
        assert bool(stages.commands) == again
        if again:
            (command,) = stages.commands
            assert command[:2] == ("trainer", "evaluate")
            assert command[command.index("--strength") + 1] == strength


def test_bad_input_ends_with_one_clear_line(quickstart: Callable[..., Result], tmp_path: Path) -> None:
    for more, said in (
        (["--data", str(tmp_path)], "holds no images"),
        (["--vgg", str(tmp_path / "none.pth")], "none.pth: no such file"),
        (["--crop", "-3"], "--crop -3"),
        (["--strength", "nan"], "--strength nan: must be above 0, and finite"),
    ):
        ended = quickstart("--out", str(tmp_path / "out"), *more)
        require_refused(ended)
        assert said in ended.stderr
    assert not (tmp_path / "out" / "faces").exists()


def test_its_folder_may_begin_with_a_hyphen(
    quickstart: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = quickstart(*flags(Path("-q")), "--count", "3")
    assert f"python -m trainer faces {tmp_path}/-q/faces --count" in ended.stdout
    assert "--count is 3, but must be at least 10" in ended.stderr


def test_a_folder_with_files_of_something_else_stays_as_it_is(
    quickstart: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("mine")
    ended = quickstart(*flags(tmp_path))
    require_refused(ended)
    assert ended.stderr.endswith("has files of something else, run for example; name a new or empty folder\n")
    assert (tmp_path / "run" / "config.json").read_text() == "mine"
