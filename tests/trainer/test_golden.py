"""What a change of form must not change: the first 20 losses of every preset, and the flags of every command.

`PYTHONPATH=tests python tests/trainer/test_golden.py` records both anew, for a change that is meant to change them.
"""

import contextlib
import hashlib
import io
import json
import platform
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from narrow_vgg import narrow_vgg

from trainer.__main__ import main
from trainer.config import RANDOM
from trainer.data import FaceData, load_data
from trainer.faces import write_faces
from trainer.presets import PRESETS
from trainer.run_folder import METRICS
from trainer.training import train

LOSSES = Path(__file__).with_name("golden_losses.json")
FLAGS = Path(__file__).with_name("golden_flags.json")
COMMANDS = ("faces", "train", "directions", "evaluate")
EXACT_STEPS, EXACT, ROUGH = 2, 1e-3, 0.15
"""On another processor or another PyTorch sums round otherwise, and each step multiplies that: there, every term of the
first steps is compared closely, and the total of all of them roughly (relative differences)."""


def losses_of(preset: str, data: FaceData, folder: Path) -> list[dict[str, float]]:
    """The losses of 20 steps of 8 images, four epochs of five, with few channels, also in VGG19."""
    config = PRESETS[preset]()
    model = replace(
        config.model, image_size=32, latent_dim=16, channels=(16, 16, 24, 32, 32)[: len(config.model.channels)]
    )
    config = replace(
        config, model=model, batch_size=8, epochs=4, limit_train=40, precision="fp32", device="cpu", threads=1,
        log_every=1, vgg_weights=RANDOM if config.taps else None,
    )  # fmt: skip
    with narrow_vgg():
        train(config, replace(data, index=data.index.limited(config.limit_train)), folder)
    records = map(json.loads, (folder / METRICS).read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


def flags_of(command: str) -> list[str]:
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main([command, "--help"])
    return sorted(set(re.findall(r"--[a-z][a-z0-9-]*", said.getvalue().partition("options")[2])))


def machine() -> dict[str, str]:
    """What decides how a sum rounds: the processor, its instruction sets among it, and PyTorch."""
    wanted = ("model name", "cpu family", "model", "stepping", "flags")
    found = platform.processor()
    if platform.system() == "Linux":
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
        lines = (map(str.strip, line.split(":", 1)) for line in first.splitlines() if ":" in line)
        found = repr([(key, value) for key, value in lines if key in wanted])
    return {"processor": hashlib.sha256(found.encode()).hexdigest(), "torch": torch.__version__}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_losses_of_every_preset_are_those_recorded(preset: str, data: FaceData, tmp_path: Path) -> None:
    golden = json.loads(LOSSES.read_text())
    losses = losses_of(preset, data, tmp_path / "run")
    assert len(losses) == 20
    if golden["machine"] == machine():
        assert losses == golden["losses"][preset]
        return
    for step, (ours, theirs) in enumerate(zip(losses, golden["losses"][preset], strict=True)):
        assert ours.keys() == theirs.keys()
        if step < EXACT_STEPS:
            assert ours == pytest.approx(theirs, rel=EXACT)
        assert ours["total"] == pytest.approx(theirs["total"], rel=ROUGH)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_of_every_command_are_those_recorded(command: str) -> None:
    assert flags_of(command) == json.loads(FLAGS.read_text())[command]


def record() -> None:
    with tempfile.TemporaryDirectory() as folder:
        faces = Path(folder) / "faces"
        write_faces(faces, 200, seed=7, workers=1)
        data = load_data(faces, 32, 148)
        losses = {preset: losses_of(preset, data, Path(folder) / preset) for preset in PRESETS}
    lines = ",\n".join(
        f' "{preset}": [\n' + ",\n".join(f"  {json.dumps(step)}" for step in steps) + "\n ]"
        for preset, steps in losses.items()
    )
    LOSSES.write_text(f'{{"machine": {json.dumps(machine())}, "losses": {{\n{lines}\n}}}}\n')
    FLAGS.write_text(json.dumps({command: flags_of(command) for command in COMMANDS}, indent=1) + "\n")


if __name__ == "__main__":
    record()
