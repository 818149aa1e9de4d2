"""Command line of the trainer: `python -m trainer {faces,train,evaluate}`."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import tyro

from trainer.config import TrainConfig
from trainer.errors import ConfigError, TrainerError
from trainer.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class Faces:
    """Draw procedural faces in CelebA's on-disk layout."""

    directory: tyro.conf.Positional[Path]
    """Folder to write; must be new or empty."""
    count: int = 10_000
    """Number of faces."""
    seed: int = 0
    """Same seed, same bytes."""
    workers: int | None = None
    """Processes; default: one a core."""

    def __call__(self) -> None:
        """Runs the command."""
        from trainer.faces import write_faces  # noqa: PLC0415  (start-up: --help need not load it)

        write_faces(self.directory, self.count, self.seed, self.workers)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure a run on the test split; writes metrics.json and figures/ into the run folder."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    data: Path
    """Data set in CelebA's layout."""
    strength: float = 1.5
    """Strength of the judged edits, in multiples of the attribute direction."""

    def __call__(self) -> None:
        """Runs the command."""
        from trainer import checkpoint, dataset  # noqa: PLC0415
        from trainer.evaluate import evaluate  # noqa: PLC0415

        config, _ = checkpoint.load_config(self.run)
        data = dataset.load(self.data, config.model.image_size, config.crop)
        print(json.dumps(evaluate(self.run, data, self.strength), indent=2))


@dataclasses.dataclass(frozen=True)
class Train:
    """Where a run reads and writes; every field of the configuration is a flag as well."""

    data: Path
    """Data set in CelebA's layout."""
    out: Path
    """Run folder to write."""
    resume: bool = False
    """Go on from the run folder's checkpoint; start if it has none."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""
    config: tyro.conf.OmitArgPrefixes[TrainConfig] = dataclasses.field(default_factory=TrainConfig)
    """What to compute."""

    def __call__(self) -> None:
        """Runs the command."""
        if self.dry_run:
            print(json.dumps(self.config.to_json(), indent=2))
            return
        from trainer import dataset, loop  # noqa: PLC0415

        data = dataset.load(self.data, self.config.model.image_size, self.config.crop)
        loop.train(self.config, data, self.out, self.resume)


def _preset(arguments: list[str]) -> TrainConfig:
    """The configuration that `--preset` names: its values are the defaults of all other flags."""
    name = "seed"
    for position, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag == "--preset":
            name = value if equals else (arguments[position + 1 :] or ["nothing"])[0]
    if name not in PRESETS:
        raise ConfigError(f"--preset {name}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0 done, 1 the loss went astray, 2 bad input, 128 + signal when interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        default = Train(data=tyro.MISSING, out=tyro.MISSING, config=_preset(arguments))
        command: Faces | Train | Evaluate = tyro.cli(
            Annotated[Faces, tyro.conf.subcommand("faces")]
            | Annotated[Train, tyro.conf.subcommand("train", default=default)]
            | Annotated[Evaluate, tyro.conf.subcommand("evaluate")],
            args=arguments,
            prog="python -m trainer",
            description=__doc__,
        )
        command()
    except (TrainerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, TrainerError) else 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
