"""Which of the trainer's rooms may import which; read from the source, so imports inside functions count as well."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from rooms import Rooms
from servers import ROOT

from trainer.config import RANDOM, ModelConfig
from trainer.data import FaceData
from trainer.loss.vae_loss import VAELoss
from trainer.presets import best
from trainer.train_state import TrainState

TRAINER = Rooms("trainer")
ENGINE = {"engine.command_line", "engine.errors", "engine.latents"}
"""What is measured and offered from Python is what is served: the same functions, pure numpy."""


def test_no_room_imports_one_that_imports_it() -> None:
    assert not TRAINER.circles()


def test_training_knows_no_evaluation_and_draws_no_charts() -> None:
    known = TRAINER.closure({"trainer.training"})
    assert not [
        name for name in known if name.startswith(("trainer.evaluation", "trainer.faces", "matplotlib", "engine"))
    ]


def test_of_the_server_only_its_arithmetic_is_imported() -> None:
    assert {
        name for module in TRAINER.modules for name in TRAINER.imports(module) if name.startswith("engine")
    } <= ENGINE


def test_help_needs_no_torch() -> None:
    """What the command line imports before it knows the command."""
    probe = "import sys, trainer.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=False).returncode == 0


def test_a_step_passes_few_files(data: FaceData, tmp_path: Path) -> None:
    """Of the preset that uses most: features, an attribute head, Muon."""
    config = replace(best(), model=ModelConfig(image_size=32, channels=(8, 8, 8)), vgg_weights=RANDOM, precision="fp32")
    state = TrainState(config, data, tmp_path)
    loss = VAELoss(config, state.perceptual())
    files = set()
    sys.setprofile(lambda frame, event, argument: files.add(frame.f_code.co_filename))
    try:
        state.train_step(loss, state.loader.batch(0)).named()
    finally:
        sys.setprofile(None)
    ours = {name for name in files if name.startswith(str(ROOT / "trainer"))}
    assert 5 < len(ours) <= 12, ours
