import multiprocessing
import os
import resource
import shutil
from collections import namedtuple
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from trainer import run_folder
from trainer.config import TrainConfig
from trainer.data import FaceData, load_data
from trainer.errors import RunError
from trainer.train_state import TrainState
from trainer.training import train


def test_what_pytorch_advises_about_foreign_objects_is_not_repeated(tmp_path: Path) -> None:
    torch.save({"version": Path("3")}, tmp_path / run_folder.CHECKPOINT)
    with pytest.raises(
        RunError, match=r"no checkpoint \(UnpicklingError\); copy the run again, or train into a new folder$"
    ):
        run_folder.load_checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [0, 1000, -1])
def test_a_torn_checkpoint_is_refused(small: TrainConfig, data: FaceData, tmp_path: Path, keep: int) -> None:
    TrainState(small, data, tmp_path).save()
    path = tmp_path / run_folder.CHECKPOINT
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        RunError, match=r"checkpoint\.pt cannot be read or is no checkpoint \(\w+\); copy the run again"
    ):
        train(small, data, tmp_path, resume=True)


def train_with_small_files(config: TrainConfig, faces: Path, run: Path, limit: int, answer: Connection) -> None:
    """Trains where no file may grow beyond `limit` bytes: to a program, that is a disk that fills up."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        train(config, load_data(faces, 32, 148), run, resume=True)
        answer.send("done")
    except RunError as error:
        answer.send(str(error))


def test_a_full_disk_keeps_the_last_good_checkpoint(
    small: TrainConfig, faces: Path, data: FaceData, tmp_path: Path
) -> None:
    config = replace(small, epochs=1, model=replace(small.model, channels=(32, 64, 64, 64, 64)))
    TrainState(config, data, tmp_path).save()
    before = (tmp_path / run_folder.CHECKPOINT).read_bytes()
    limit = (tmp_path / run_folder.MODEL).stat().st_size // 2
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["trainer.training"])
    receiver, sender = processes.Pipe(duplex=False)
    processes.Process(target=train_with_small_files, args=(config, faces, tmp_path, limit, sender)).start()
    assert receiver.poll(250)
    said = receiver.recv()
    assert f"{tmp_path / run_folder.MODEL} could not be written (File too large), so it is as it was before" in said
    assert "free some space" in said
    assert (tmp_path / run_folder.CHECKPOINT).read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
    train(config, data, tmp_path, resume=True)
    assert run_folder.load_checkpoint(tmp_path)["step"] == 5


def test_too_little_space_is_said_before_training(
    small: TrainConfig, data: FaceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 100_000, 100_000))
    with pytest.raises(RunError, match=r"up to \d MB are to be written, and the disk has 0 MB free; free some space"):
        train(small, data, tmp_path / "run")
    assert not (tmp_path / "run" / run_folder.CONFIG).exists()


def test_the_estimate_of_the_space_covers_what_is_written(small: TrainConfig, data: FaceData, tmp_path: Path) -> None:
    config = replace(small, epochs=1)
    train(config, data, tmp_path)
    written = sum((tmp_path / name).stat().st_size for name in (run_folder.MODEL, run_folder.CHECKPOINT))
    assert written < 1.1 * TrainState(config, data, tmp_path).saved_bytes


def test_two_trainings_do_not_share_a_folder(small: TrainConfig, data: FaceData, tmp_path: Path) -> None:
    with run_folder.occupied(tmp_path, 0), pytest.raises(RunError, match="is in use: another process works there"):
        train(small, data, tmp_path, resume=True)
    train(replace(small, epochs=1), data, tmp_path, resume=True)


def test_files_that_a_killed_process_left_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".model.safetensors.123.tmp").write_bytes(b"half")
    with run_folder.occupied(tmp_path, 0):
        assert not list(tmp_path.glob("*.tmp"))
