"""`python -m quickstart`: every command of the project in turn, each printed, so that it can be run by hand as well."""

from trainer.extras import require

if __name__ == "__main__":
    require("train")  # before what needs it is imported

import json
import resource
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from engine.bundle import MANIFEST
from engine.command_line import read_flags
from quickstart import report
from quickstart.client import Job
from trainer import run_folder
from trainer.config import RANDOM, TrainConfig
from trainer.data import FaceData, load_data, read_index
from trainer.data.index import ImageFile
from trainer.errors import DataError, RunError, TrainerError
from trainer.evaluation.classifier import classifier_of
from trainer.evaluation.edits.curves import JUDGED_ATTRIBUTES
from trainer.evaluation.edits.faces import MAX_EDITED
from trainer.evaluation.evaluate import REPORT, digests, made_with
from trainer.evaluation.options import Options
from trainer.faces import FACES_VERSION
from trainer.hardware.device import Placement
from trainer.loss.vgg import check_weights
from trainer.presets import quickstart as preset
from trainer.run_folder import EVALUATION

START_SECONDS, STOP_SECONDS = 300, 60
"""Time that the server has to start, on a slow and busy machine, and to stop."""
MARK = ".quickstart"
"""Says that a folder was made by this command."""
PRESET_IMAGES = 6400
"""Size of the train split that the preset's number of epochs is meant for: 80 % of the default count of faces."""


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Trains on faces, exports, serves, and edits held-out faces over gRPC; then shows and measures the result."""

    out: Path = Path("out/quickstart")
    """Folder for everything that is made."""
    data: Path | None = None
    """Your own data set in CelebA's layout; default: procedural faces are drawn."""
    vgg: Path | None = None
    """File with VGG19 weights; default: random ones, which need no download and will do for this."""
    crop: int | None = None
    """Side of the centre crop, pixels; 0 for images that are cropped already. Default: the preset's."""
    epochs: int | None = None
    """Passes over the training faces. Default: as many as the preset makes of 6,400 faces, in images."""
    count: int = 8000
    """Procedural faces to draw."""
    seed: int = 0
    """Seed of the faces and of the training."""
    strength: float = 1.5
    """Strength of the edits that are judged, in lengths of the mean difference."""

    def training(self, num_images: int = PRESET_IMAGES) -> TrainConfig:
        """The preset with this command's own choices, for a train split of `num_images`."""
        config = preset()
        crop = config.crop if self.crop is None else self.crop
        epochs = max(1, round(config.epochs * PRESET_IMAGES / num_images)) if self.epochs is None else self.epochs
        return replace(config, seed=self.seed, vgg_weights=self.vgg or RANDOM, crop=crop, epochs=epochs)

    def check(self) -> None:
        """Refuses what would fail minutes later."""
        wanted = self.training()
        Options(strength=self.strength)
        if self.data is not None:
            index = read_index(self.data)
            if not set(JUDGED_ATTRIBUTES) & set(index.attributes):
                raise DataError(
                    f"--data {self.data}: has no labels of {' or '.join(JUDGED_ATTRIBUTES)}, so there would be nothing "
                    "to edit; give a data set with labels, or train on this one with `python -m trainer train`"
                )
        check_weights(wanted.taps, wanted.vgg_weights)

    def occupy(self) -> None:
        """Makes the folder, or takes that of an earlier quickstart, whose faces, run and bundle may be made anew."""
        mark = self.out / MARK
        others = [] if mark.exists() or not self.out.exists() else sorted(path.name for path in self.out.iterdir())
        if others:
            raise DataError(
                f"--out {self.out}: has files of something else, {others[0]} for example; name a new or empty folder"
            )
        self.out.mkdir(parents=True, exist_ok=True)
        mark.touch()


class StageError(Exception):
    """A command of the quickstart failed; it has said why itself."""


class Stages:
    """Runs commands, shows them, and remembers how long each took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def show(self, name: str, *arguments: object) -> list[str]:
        """Says which `python -m ...` comes next, and gives its command line."""
        print(f"\n== {name}\n$ python -m {shlex.join(map(str, arguments))}", flush=True)
        return [sys.executable, "-m", *map(str, arguments)]

    def run(self, name: str, *arguments: object) -> None:
        """Runs `python -m ...` to its end."""
        began = time.monotonic()
        with subprocess.Popen(self.show(name, *arguments)) as process:
            try:
                code = process.wait()
            except KeyboardInterrupt:  # the terminal has told the command, too, which writes its checkpoint now
                process.wait()
                raise
            except SystemExit:
                process.terminate()
                raise
        self.seconds[name] = round(time.monotonic() - began, 1)
        if code:
            raise StageError(f"the stage '{name}' ended with exit code {code}; what it said stands above")

    def reuse(self, name: str, what: Path) -> None:
        """Says that a stage's result is there already."""
        print(f"\n== {name}: re-using {what}", flush=True)


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; empty where there is none that can be read."""
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return values


def draw(config: Quickstart, stages: Stages) -> Path:
    """The data set: the user's, or procedural faces."""
    if config.data is not None:
        return config.data
    folder = config.out / "faces"
    wanted = {"count": config.count, "seed": config.seed, "generator_version": FACES_VERSION}
    if wanted.items() <= _read(folder / "faces.json").items():
        stages.reuse("faces", folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        stages.run("faces", "trainer", "faces", folder, "--count", config.count, "--seed", config.seed)
    return folder


def train(config: Quickstart, data: Path, run: Path, stages: Stages) -> FaceData:
    """The run folder: complete, gone on with, or made anew if it is of other settings or data."""
    wanted = config.training()
    packed = load_data(data, wanted.model.image_size, wanted.crop)
    wanted = config.training(len(packed.rows("train")))
    try:
        found, resolved = run_folder.load_config(run)
        same = found == wanted and packed.fingerprint == resolved["data_fingerprint"]
    except RunError:
        same = False
    if not same:
        shutil.rmtree(run, ignore_errors=True)
    where = ("--data", data, "--out", run, "--resume")
    what = ("--crop", wanted.crop, "--epochs", wanted.epochs, "--vgg-weights", wanted.vgg_weights)
    stages.run("training", "trainer", "train", "--preset", wanted.preset, "--seed", wanted.seed, *what, *where)
    return packed


SKIPPED = ("lpips", "fid")
"""Measures that may download, and take minutes."""


def evaluate(config: Quickstart, folder: Path, data: FaceData, run: Path, stages: Stages) -> dict[str, Any]:
    """What the trainer measures of the run; measured again if it was of other weights, data or settings."""
    path, made = run / EVALUATION, made_with(run)
    same = data.fingerprint == made.get("data", {}).get("fingerprint") and made.get("files") == digests(run)
    if same and (made["strength"], made["skip"]) == (config.strength, list(SKIPPED)):
        stages.reuse("evaluation", path)
    else:
        options = ("--strength", config.strength, "--skip", *SKIPPED)
        stages.run("evaluation", "trainer", "evaluate", run, "--data", folder, *options)
    return _read(path)


def export(run: Path, bundle: Path, stages: Stages) -> dict[str, Any]:
    """The bundle of the run; its manifest. Built again if it was of other weights, directions or another prior."""
    built = _read(bundle / MANIFEST)
    found = {run_folder.MODEL: built.get("run", {}).get("model_sha256"), **built.get("files", {})}
    if digests(run).items() <= found.items():
        stages.reuse("export", bundle)
    else:
        force = ["--force"] if bundle.exists() else []
        stages.run("export", "export.build_engines", "--run", run, "--out", bundle, *force)
    return _read(bundle / MANIFEST)


def _file(image: ImageFile, copy: Path) -> Path:
    """The file of an image; a copy of one that lies in another file."""
    if isinstance(image, Path):
        return image.resolve()
    copy.parent.mkdir(exist_ok=True)
    with image.open("rb") as file:
        copy.write_bytes(file.read())
    return copy.resolve()


def write_order(config: Quickstart, data: FaceData, attributes: list[str], path: Path) -> list[Job]:
    """Which held-out faces the client is to edit, and how: adding and removing each judged attribute."""
    jobs, test = [], data.rows("test")
    for attribute, strength in product(JUDGED_ATTRIBUTES, (config.strength, -config.strength)):
        if attribute not in attributes:
            continue
        has = data.index.labels[test, data.index.attributes.index(attribute)]
        rows = test[has != (strength > 0)][:MAX_EDITED]
        if len(rows):
            files = [str(_file(data.index.image(row), path.parent / "asked" / f"{row}.image")) for row in rows]
            jobs.append(Job(attribute, strength, files))
    if not jobs:
        raise DataError(
            f"{data.index.root}: no direction of {' or '.join(JUDGED_ATTRIBUTES)} could be computed, so there is "
            "nothing to edit; these attributes need 20 images on either side in the train split and some in test"
        )
    run_folder.write_json(path, [asdict(job) for job in jobs])
    return jobs


def serve_and_edit(bundle: Path, order: Path, answers: Path, stages: Stages) -> None:
    """Starts the server as a process, lets the client process work, and stops the server with SIGTERM."""
    command = stages.show("server", "engine", "--bundle", bundle, "--port", 0, "--log-level", "warning")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            if not select.select([server.stdout], [], [], START_SECONDS)[0]:
                raise StageError(f"the server has not started in {START_SECONDS} s; what it said stands above")
            line = server.stdout.readline().strip()
            if not line:
                raise StageError(f"the server ended with exit code {server.wait()}; what it said stands above")
            print(line, flush=True)
            target = line.rsplit(" ", 1)[-1]
            stages.run("client", "quickstart.client", "--target", target, "--order", order, "--out", answers)
        finally:
            server.terminate()
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
    if server.returncode:
        raise StageError(f"the server ended with exit code {server.returncode}")


def main() -> int:
    """Runs the quickstart; 0 done, 1 a stage failed, 2 bad input."""
    began = time.monotonic()
    stages = Stages()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        config = read_flags(Quickstart, "python -m quickstart")
        config.check()
        config.occupy()
        run, bundle, order = config.out / "run", config.out / "bundle", config.out / "order.json"
        folder = draw(config, stages)
        data = train(config, folder, run, stages)
        metrics = evaluate(config, folder, data, run, stages)
        manifest = export(run, bundle, stages)
        jobs = write_order(config, data, manifest["attributes"], order)
        serve_and_edit(bundle, order, config.out / "edits.npz", stages)
        classifier = classifier_of(run, data, Placement.of())
        metrics["served_edits"] = report.judge(classifier, jobs, config.out / "edits.npz", config.out)
    except (StageError, TrainerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, StageError) else 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    for figure in (run / "figures").glob("*.png"):
        shutil.copyfile(figure, config.out / figure.name)
    shutil.copyfile(run / REPORT, config.out / REPORT)
    largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    metrics |= {
        "parity": manifest["parity"],
        "seconds": stages.seconds | {"total": round(time.monotonic() - began, 1)},
        "peak_memory_mib": round(largest / 1024),
    }
    run_folder.write_json(config.out / EVALUATION, metrics)
    print(f"\n{report.summary(metrics)}")
    print(f"time: {metrics['seconds']['total']:.0f} s; largest process: {metrics['peak_memory_mib']} MiB")
    print(f"figures, {EVALUATION} and {REPORT}: {config.out}/")
    for figure in sorted(config.out.glob("*.png")):
        print(f"  {figure}")
    print("to move the sliders yourself, in a browser:")
    print(f"  {shlex.join([sys.executable, '-m', 'engine', '--bundle', str(bundle)])} &")
    print(f"  {shlex.join([sys.executable, '-m', 'engine.page'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
