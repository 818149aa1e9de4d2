"""What a user can get wrong with `python -m export.build_engines`: one line, an exit code, and nothing left behind.

Through the command line; what each part refuses is tested beside that part.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from builds import FLAGS
from machine import as_nobody, on_disks
from runs import LATENT_DIM, own_derived, smooth_images
from safetensors.numpy import load_file, save_file
from scripts import Result, require_refused
from tiny_model import save_directions

from engine.latents import Directions

DISKS = {"tiny": "size=20k", "small": "size=80k", "read_only": "size=1000k,ro"}
FILES = ("config.json", "model.safetensors", "directions.safetensors", "prior.safetensors", "samples.safetensors")

Spoil = Callable[[Path], object]
Command = Callable[..., Result]
# The run


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff" * 1000)


def cut_early(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def cut_late(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def missing(path: Path) -> None:
    path.unlink()


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [empty, garbage, cut_early, cut_late, missing, folder_instead])
@pytest.mark.parametrize("name", FILES)
def test_a_torn_file_is_named(command: Command, run: Path, tmp_path: Path, name: str, spoil: Spoil) -> None:
    spoil(run / name)
    result = command("--run", run, "--out", tmp_path / "new" / "bundle")
    require_refused(result)
    assert name in result.stderr
    assert str(run) in result.stderr
    assert list(tmp_path.iterdir()) == [run]


def change_config(**values: Any) -> Spoil:
    def change(run: Path) -> None:
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**config, **values}))

    return change


def change_weights(change: Callable[[Any], Any]) -> Spoil:
    def spoil(run: Path) -> None:
        tensors = {name: np.array(values) for name, values in load_file(run / "model.safetensors").items()}
        tensors["encoder.mu.weight"] = change(tensors["encoder.mu.weight"])
        save_file(tensors, run / "model.safetensors")
        own_derived(run)

    return spoil


def spoil_direction(run: Path) -> None:
    metadata = {"names": '["Bald"]', "positives": "[20]", "negatives": "[20]", "split": "train"}
    vectors = np.full((1, LATENT_DIM), np.nan, np.float32)
    save_file({"directions": vectors}, run / "directions.safetensors", metadata=metadata)


def other_directions(run: Path) -> None:
    vectors = np.ones((1, 5), np.float32)
    save_directions(Directions(("Bald",), vectors, (20,), (20,), "train"), run / "directions.safetensors")


def save_samples(images: npt.NDArray[Any], name: str = "images") -> Spoil:
    return lambda run: save_file({name: images}, run / "samples.safetensors")


SPOILED: dict[str, tuple[Spoil, str]] = {
    "no object": (lambda run: (run / "config.json").write_text("[]"), "config.json cannot be read"),
    "another version": (change_config(format_version=9), "has format version 9, this version reads 1; train again"),
    "torn results": (change_config(resolved=[]), "`resolved` is [], must be an object"),
    "unknown field": (change_config(config={"wings": 2}), "config.json cannot be read"),
    "another model": (change_weights(lambda weight: weight[:, :-1]), "does not hold the weights of this run's model"),
    "no directions": (
        lambda run: (run / "directions.safetensors").unlink(),
        "finish the training with `python -m trainer train --resume`",
    ),
    "other directions": (other_directions, "directions of 5 values, the model has 16 latents"),
    "a direction that is no number": (spoil_direction, "the direction of 'Bald' has values that are not finite"),
    "samples without images": (save_samples(smooth_images(2, 64), "pictures"), "no tensor 'images'"),
    "one sample": (save_samples(smooth_images(1, 64)), "is uint8 [1, 64, 64, 3], must be uint8 [2 or more, 64, 64, 3]"),
    "samples of another size": (save_samples(smooth_images(2, 32)), "is uint8 [2, 32, 32, 3]"),
    "samples of another type": (save_samples(np.zeros((2, 64, 64, 3), np.float32)), "is float32"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_run_that_does_not_fit(command: Command, run: Path, tmp_path: Path, case: str) -> None:
    spoil, message = SPOILED[case]
    spoil(run)
    result = command("--run", run, "--out", tmp_path / "bundle")
    require_refused(result)
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == [run]


def test_weights_that_are_no_numbers_fail_the_gate(command: Command, run: Path, tmp_path: Path) -> None:
    change_weights(lambda weight: np.full_like(weight, np.nan))(run)
    result = command("--run", run, "--out", tmp_path / "new" / "bundle")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.endswith("; no bundle was written\n")
    assert list(tmp_path.iterdir()) == [run]


def test_files_and_folders_without_permission_are_named(shared_run: Path, tmp_path: Path) -> None:
    shutil.copytree(shared_run, tmp_path / "run")
    (tmp_path / "locked").mkdir(0o555)
    (tmp_path / "closed").mkdir(0o000)
    code = f"""
from pathlib import Path
from export.build_engines import main
for name in {FILES}:
    path = Path("run") / name
    path.chmod(0o000)
    print(main([*{FLAGS}, "--run", "run", "--out", "bundle"]))
    path.chmod(0o644)
for name in ("locked", "closed"):
    print(main([*{FLAGS}, "--run", "run", "--out", name + "/bundle"]))
"""
    result = as_nobody(tmp_path, [sys.executable, "-c", code])
    (tmp_path / "closed").chmod(0o755)
    assert result.stdout == "2\n" * (len(FILES) + 2)
    first, *lines, locked, closed = result.stderr.splitlines()
    mend = "have its owner run `chmod a+r run/config.json`"
    assert first == f"error: run/config.json cannot be read (Permission denied); {mend}"
    for name, line in (("locked", locked), ("closed", closed)):
        assert line == (
            f"error: --out {name}/bundle: {name} cannot be written to (Permission denied); choose another place"
        )
    for name, line in zip(FILES[1:], lines, strict=True):
        assert line.startswith("error: ")
        assert name in line
        assert "Permission denied" in line
    assert {path.name for path in tmp_path.iterdir()} == {"run", "locked", "closed"}


def test_what_is_no_run(command: Command, shared_run: Path, tmp_path: Path) -> None:
    for run in (shared_run / "config.json", tmp_path / "nowhere"):
        require_refused(command("--run", run, "--out", tmp_path / "bundle"), f"{run} is not a run folder")


# The place


def test_a_place_that_is_taken(command: Command, shared_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "folder", "link", "file/bundle"):
        result = command("--run", shared_run, "--out", tmp_path / name)
        require_refused(result)
        assert result.stderr.endswith("choose another place\n")
    assert (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_place_for_triton_that_is_taken(command: Command, shared_run: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for name, reason in (("models", "exists already"), ("models/../nowhere/..", "is not the name of a new folder")):
        result = command("--run", shared_run, "--out", tmp_path / "bundle", "--triton", tmp_path / name)
        require_refused(result, f"--triton {tmp_path / name}: {reason}")
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_small_and_a_read_only_disk(shared_run: Path, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from export.build_engines import main
for disk in {tuple(DISKS)}:
    print(main([*{FLAGS}, "--run", {str(shared_run)!r}, "--out", disk + "/new/bundle"]), *Path(disk).iterdir())
"""
    result = on_disks(tmp_path, DISKS, [sys.executable, "-c", code])
    assert result.stdout == "2\n" * len(DISKS), result.stderr  # and nothing on the disk
    *small, read_only = result.stderr.splitlines()
    for line, disk in zip(small, list(DISKS)[:-1], strict=True):
        assert line.startswith("error: ")
        assert f"{disk}/new" in line
        assert line.endswith("free some space, or choose another place")
    assert read_only.startswith("error: --out read_only/new/bundle: ")
    assert read_only.endswith("cannot be written to (Read-only file system); choose another place")


# The flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--max-batch", "0"), "--max-batch 0: must be at least 1"),
        (("--max-batch", "-3"), "--max-batch -3: must be at least 1"),
        (("--max-batch", "1000000"), "--max-batch 1000000: must be at most 4096"),
        (("--threads", "0"), "--threads 0: must be at least 1"),
        (("--threads", "100000"), "--threads 100000: must be at most 4096"),
        (("--precision", "bf16"), "--backend onnxruntime --precision bf16: not supported; supported here: onnxruntime"),
        (("--backend", "tensorrt"), "--backend tensorrt --precision fp32: not supported (tensorrt fp32 on cuda: "),
        (("--precision", "int8", "--encoder", "product"), "--encoder product: int8 takes only plain"),
        (("--backend", "openvino", "--precision", "fp16"), "--backend openvino --precision fp16: not supported"),
        (("--min-psnr", "-1"), "--min-psnr -1.0: must be at least 0, and finite"),
        (("--latent-tolerance", "nan"), "--latent-tolerance nan: must be at least 0, and finite"),
        (("--latent-tolerance", "inf"), "--latent-tolerance inf: must be at least 0, and finite"),
        (("--min-psnr", "inf"), "--min-psnr inf: must be at least 0, and finite"),
        (("--level-tolerance", "-1"), "--level-tolerance -1: must be at least 0"),
        (("--mean-tolerance", "-0.5"), "--mean-tolerance -0.5: must be at least 0"),
        (("--bias-tolerance", "-0.5"), "--bias-tolerance -0.5: must be at least 0"),
        (("--logit-tolerance", "-0.5"), "--logit-tolerance -0.5: must be at least 0"),
        (("--backend", "tensorrt-rtx", "--compute-capability", "9.0"), "--compute-capability 9.0: TensorRT for RTX bu"),
        (("--compute-capability", "8.9"), "--compute-capability: --backend onnxruntime builds for this machine; take"),
    ],
)
def test_flags(command: Command, shared_run: Path, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    require_refused(command("--run", shared_run, "--out", tmp_path / "bundle", *flags), message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags", [("--backend", "abacus"), ("--precision", "fp7"), ("--max-batch", "many"), ("--wings",)]
)
def test_flags_that_there_are_not(command: Command, shared_run: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        command("--run", shared_run, "--out", tmp_path / "bundle", *flags)
    assert ended.value.code == 2
    assert list(tmp_path.iterdir()) == []
