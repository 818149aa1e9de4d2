"""Trains a DFC-VAE on faces and judges it: `python -m trainer {faces,train,directions,evaluate}`."""

import dataclasses
import difflib
import errno
import inspect
import json
import logging
import os
import signal
import sys
from pathlib import Path
from shlex import quote
from types import FrameType
from typing import Annotated

import tyro

from engine.command_line import REAL_PATHS, last_given, tell_version, words_of
from trainer.config import Kind, TrainConfig
from trainer.errors import ConfigError, TrainerError
from trainer.evaluation.options import Options
from trainer.extras import require
from trainer.presets import PRESETS

logger = logging.getLogger(__name__)

DEFAULT_PRESET = "best"


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
        print(f"wrote {self.count} faces to {self.directory}")
        print(f"next: python -m trainer train --data {quote(str(self.directory))} --out RUN")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure a run on the test split; writes metrics.json, figures/ and report.html into the run folder."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    data: Path
    """Data set, as for train."""
    labels: Path | None = None
    """CSV of labels, as for train; default: the run's for the data that it was trained on, and other data's own."""
    align: tyro.conf.FlagCreatePairsOff[bool] = False
    """Find and align faces as train does with --align; a run that was trained so does it anyway."""
    options: tyro.conf.OmitArgPrefixes[Options] = dataclasses.field(default_factory=Options)
    """How to judge."""
    threads: int | None = None
    """Threads that compute on a CPU; default: $OMP_NUM_THREADS, or as many as the machine has free cores now."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"--threads {self.threads}: must be at least 1")

    def __call__(self) -> None:
        """Runs the command."""
        # PyTorch reads it with its first tensor: on huge pages, large activations touch far fewer pages anew.
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        from trainer import run_folder  # noqa: PLC0415
        from trainer.data import load_data_for  # noqa: PLC0415
        from trainer.evaluation.evaluate import REPORT, evaluate  # noqa: PLC0415
        from trainer.evaluation.report import summary  # noqa: PLC0415
        from trainer.hardware import threads  # noqa: PLC0415

        data = load_data_for(*run_folder.load_config(self.run), self.data, labels=self.labels, align=self.align)
        with threads.limited(threads.choose(self.threads)):
            print(summary(evaluate(self.run, data, self.options)))
        print(f"report: {(self.options.out or self.run) / REPORT}")
        print(f"next: python -m export.build_engines --run {quote(str(self.run))} --out BUNDLE")


@dataclasses.dataclass(frozen=True)
class Directions:
    """Give a finished run attribute directions without training: anew, or for labels of your own.

    They go beside those that the run has; one of a name that it has takes its place. The prior is made as well where
    the run has none of its weights. Any of the three:

    - RUN --data DIR: from the data set's own labels
    - RUN --data DIR --labels CSV: from labels of your own for images of the data set
    - RUN --with A --without B --name NAME: from two folders of images, of faces with something and without it
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    data: Path | None = None
    """Data set that the run was trained on, as for train."""
    labels: Path | None = None
    """CSV with the header file,NAME,... and a line for each labelled image: its name in the data set, then 1 or 0."""
    having: Annotated[Path | None, tyro.conf.arg(name="with")] = None
    """Folder of images of faces that have the attribute NAME, framed as the training images were."""
    lacking: Annotated[Path | None, tyro.conf.arg(name="without")] = None
    """Folder of images of faces that do not have it; at least 20 in each."""
    name: str | None = None
    """What the attribute of --with and --without is to be called."""
    kind: Kind | None = None
    """Kind of the directions: mean differences; adjusted, with the other attributes held equal; or normals of linear
    SVMs. Default: the run's --directions, and mean for two folders where that is adjusted."""
    align: tyro.conf.FlagCreatePairsOff[bool] = False
    """Find and align faces as train does with --align; a run that was trained so does it anyway."""
    drop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Attribute to take out of the run. Repeat for several."""

    def __post_init__(self) -> None:
        folders = (self.having, self.lacking, self.name)
        if self.drop and (self.data or any(folders)):
            raise ConfigError("--drop: stands alone; first drop, then compute")
        if any(folders) and (self.data or self.labels):
            raise ConfigError("--with, --without and --name: need neither --data nor --labels; give one or the other")
        if any(folders) and not all(folders):
            raise ConfigError("--with A --without B --name NAME: give all three")
        if not (self.data or self.drop or any(folders)):
            raise ConfigError("give --data DIR, perhaps with --labels CSV, or --with A --without B --name NAME")
        if self.name is not None and self.name != self.name.strip():
            raise ConfigError(f"--name {self.name!r}: must have no blanks at its ends")

    def __call__(self) -> None:
        """Runs the command."""
        from trainer.artifacts import own_labels  # noqa: PLC0415

        if self.data is not None:
            changes = own_labels.from_data(self.run, self.data, self.kind, self.labels, align=self.align)
        elif self.having and self.lacking and self.name:
            changes = own_labels.from_folders(
                self.run, self.having, self.lacking, self.name, self.kind, align=self.align
            )
        else:
            changes = own_labels.drop(self.run, self.drop)
        print(f"attribute directions: {changes}")
        print(f"next: python -m export.build_engines --run {quote(str(self.run))} --out BUNDLE")


@dataclasses.dataclass(frozen=True)
class Train:
    """Where a run reads and writes; every field of the configuration is a flag as well."""

    data: Path
    """Data set: a folder in CelebA's layout (torchvision's, Kaggle's, CelebAMask-HQ's), of images, or of parquet files.
    Images without labels have no attributes to edit."""
    out: Path
    """Run folder to write; new, and outside the data set."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on from the run folder's checkpoint; start if it has none."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Check everything, print the resolved configuration and what the run would do, write a contact sheet of what the
    network will see (OUT-contact-sheet.png), and stop."""
    config: tyro.conf.OmitArgPrefixes[TrainConfig] = dataclasses.field(default_factory=TrainConfig)
    """What to compute."""

    def __call__(self) -> None:
        """Runs the command."""
        from trainer.preflight import Plan  # noqa: PLC0415  (start-up: --help need not load torch)

        plan = Plan.of(self.config, self.data, self.out, self.resume)
        if self.dry_run:
            sheet = plan.write_contact_sheet()
            values = {"config": self.config.to_json(), "plan": {**plan.to_json(), "contact_sheet": str(sheet)}}
            print(json.dumps(values, indent=2))
            return
        data = plan.data()
        from trainer import training  # noqa: PLC0415

        training.train(self.config, data, self.out, self.resume)
        if _is_main_process():
            out, given = quote(str(self.out)), quote(str(self.data))
            evaluate = f"python -m trainer evaluate {out} --data {given}"
            print(f"next: {evaluate}, then python -m export.build_engines --run {out} --out BUNDLE")


def _is_main_process() -> bool:
    """Whether this is the process that logs, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _defaults(arguments: list[str]) -> TrainConfig:
    """What the flags of `train` are when they are not given: the preset's values, or those of a run that is resumed."""
    name = last_given(arguments, "--preset")
    if "--resume" in arguments:
        folder = Path(last_given(arguments, "--out") or "")
        if (folder / "config.json").is_file():
            from trainer import run_folder  # noqa: PLC0415  (start-up: --help need not load torch)

            config, _ = run_folder.load_config(folder)
            if name in (None, config.preset):
                return config
    if name is None:
        name = DEFAULT_PRESET
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"--preset {name}: must be one of {', '.join(PRESETS)}{meant}")
    return PRESETS[name]()


def _refuse_unused(config: TrainConfig, arguments: list[str]) -> None:
    """Refuses flags that were given and would change nothing."""
    given = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    for name, reason in config.unused_fields().items():
        flag = name.replace("_", "-")
        if given & {f"--{flag}", f"--no-{flag}"}:
            raise ConfigError(f"--{flag}: has no effect here, as {reason}")


def _say_preset(command: Train, arguments: list[str]) -> None:
    """Says which preset is taken where none is asked for."""
    resumed = command.resume and (command.out / "config.json").is_file()
    if last_given(arguments, "--preset") is None and not resumed:
        logger.info(
            "preset %s, as --preset is not given: what measures best for editing; --preset seed is the recipe of the "
            "seed document",
            DEFAULT_PRESET,
        )


def _train_help() -> str:
    """What `train` does, and one sentence a preset: the first line of its docstring."""
    presets = (f"- {name}: {(inspect.getdoc(make) or '').splitlines()[0]}" for name, make in PRESETS.items())
    intro = (
        f"Train on a folder of faces. --preset sets the defaults of the other flags, {DEFAULT_PRESET} if it is not "
        "given; with --resume they are those of the run. The presets are:"
    )
    return "\n".join((intro, *presets))


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0 done, 1 the loss went astray, 2 bad input, 128 + signal when interrupted.
    """
    arguments = words_of(arguments)
    if tell_version(arguments):
        return 0
    level = logging.INFO if _is_main_process() else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    received: list[int] = [signal.SIGINT]

    def interrupt(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        raise KeyboardInterrupt

    previous = signal.getsignal(signal.SIGTERM)
    if previous is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, interrupt)  # so that it, like SIGINT, leaves no half-written file
    try:
        default = Train(data=tyro.MISSING, out=tyro.MISSING, config=_defaults(arguments))
        with REAL_PATHS:
            command: Faces | Train | Directions | Evaluate = tyro.cli(
                Annotated[Faces, tyro.conf.subcommand("faces")]
                | Annotated[Train, tyro.conf.subcommand("train", default=default, description=_train_help())]
                | Annotated[Directions, tyro.conf.subcommand("directions")]
                | Annotated[Evaluate, tyro.conf.subcommand("evaluate")],
                args=arguments,
                prog="python -m trainer",
                description=__doc__,
            )
        if not isinstance(command, Faces):
            require("train")
        if isinstance(command, Train):
            _refuse_unused(command.config, arguments)
            _say_preset(command, arguments)
        command()
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 128 + received[-1]
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _sentence(error: OSError) -> str:
    """What the operating system refused, and the mend."""
    if error.errno is None or error.filename is None:
        return str(error)
    mends = {
        errno.ENOSPC: "free some space, or choose a place on another disk",
        errno.EACCES: "give yourself access, or choose another place",
        errno.EROFS: "choose a place that can be written to",
    }
    mend = mends.get(error.errno, "see that it is there and of the right kind")
    return f"{error.filename}: {(error.strerror or 'failed').lower()}; {mend}"


if __name__ == "__main__":
    sys.exit(main())
