"""The run folder: what training leaves behind, written so that an interruption never tears a file.

config.json              the configuration, and what it resolved to on this machine
model.safetensors        the weights, float32; of a finished run with latents of mean 0 and variance 1
checkpoint.pt            everything that an exact resume needs
metrics.jsonl            losses per logged step, validation per epoch
directions.safetensors   the attribute directions
prior.safetensors        the Gaussian and the mixture of some that new faces are drawn from
README.md                the model card
metrics.json             what `evaluate` measured, if it has
samples.safetensors      held-out images, `images` (N, S, S, 3) uint8: what export's parity gate compares on, anywhere
"""

import dataclasses
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from textwrap import shorten
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from trainer.config import TrainConfig, flag_of
from trainer.errors import ConfigError, RunError
from trainer.hardware.device import seeded
from trainer.model import VAE

RUN_FORMAT_VERSION = 1
CHECKPOINT_VERSION = 3
"""Rises whenever a checkpoint holds other things, or the same seed gives other batches."""
CONFIG, MODEL, CHECKPOINT = "config.json", "model.safetensors", "checkpoint.pt"
METRICS, SAMPLES = "metrics.jsonl", "samples.safetensors"
DIRECTIONS, PRIOR = "directions.safetensors", "prior.safetensors"
EVALUATION, CARD = "metrics.json", "README.md"
LOCK = ".lock"
"""Stays in every folder that a run or an evaluation wrote to."""


def require_free(run: Path, resume: bool) -> None:
    """Lets a run begin in a folder without a run and without files that it would replace, or with `resume` go on.

    Raises:
        RunError: names the file.
    """
    if (run / CONFIG).exists() or (run / CHECKPOINT).exists():
        if not resume:
            raise RunError(f"--out {run}: holds a run already; add --resume to go on with it, or choose another --out")
        return
    for name in (MODEL, METRICS, DIRECTIONS, PRIOR, SAMPLES):
        if (run / name).exists():
            raise RunError(
                f"--out {run}: holds a {name} of something else than a run, as there is no {CONFIG}; choose another "
                "--out, or move it away"
            )


def require_apart(out: Path, data: Path) -> None:
    """Keeps what is written out of a data set, as pictures among it would become data.

    Raises:
        RunError: it lies in one.
    """
    if out.resolve().is_relative_to(data.resolve()):
        raise RunError(f"--out {out}: lies inside the data set {data}; choose a folder outside of it")


@contextmanager
def occupied(run: Path, needed_bytes: int) -> Iterator[None]:
    """Makes the folder of a run or an evaluation, sees that there is room in it, and keeps other commands out of it.

    Raises:
        RunError: the folder cannot be written to, the disk is too full, or another process works there.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run / LOCK).acquire(timeout=0)
    except Timeout:
        raise RunError(f"{run} is in use: another process works there; wait for it, or choose another --out") from None
    except OSError as error:
        raise RunError(f"{run} cannot be written to ({error.strerror}); choose another --out") from error
    with lock:
        for left in run.glob(".*.[0-9]*.tmp"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        free = shutil.disk_usage(run).free
        if free < needed_bytes:
            raise RunError(
                f"{run}: up to {needed_bytes / 1e6:,.0f} MB are to be written, and the disk has {free / 1e6:,.0f} MB "
                "free; free some space, or choose another --out"
            )
        yield


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` on a temporary sibling, flushes it to disk and renames it to `path`.

    Raises:
        RunError: it could not be written; what was at `path` before still is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # safetensors makes files that only their owner may read
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise RunError(
            f"{path} could not be written ({reason}), so it is as it was before; free some space or mend the disk, "
            "then give the command again, train's with --resume"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Writes `values` as indented, strict JSON, atomically.

    Raises:
        ValueError: a number is not finite; measures give null where there is none.
    """
    text = json.dumps(values, indent=2, allow_nan=False)
    write_atomically(path, lambda file: file.write_text(text + "\n"))


def save_config(run: Path, config: TrainConfig, resolved: dict[str, Any]) -> None:
    """Writes config.json: the configuration and what it resolved to (device, precision, data, VGG weights)."""
    values = {"format_version": RUN_FORMAT_VERSION, "config": config.to_json(), "resolved": resolved}
    write_json(run / CONFIG, values)


def load_config(run: Path) -> tuple[TrainConfig, dict[str, Any]]:
    """Reads config.json: the configuration, and what it resolved to.

    Raises:
        RunError: no run there, or its configuration is unreadable or of another version.
    """
    path = run / CONFIG
    if not path.is_file():
        raise RunError(
            f"{run} is not a run folder: it has no {CONFIG}; make one with "
            f"`python -m trainer train --data DIR --out {quote(str(run))}`"
        )
    try:
        values = json.loads(path.read_text())
        version = values["format_version"]
        if version != RUN_FORMAT_VERSION:
            raise RunError(f"{path} has format version {version}, this version reads {RUN_FORMAT_VERSION}; train again")
        return TrainConfig.from_json(values["config"]), values["resolved"]
    except KeyError as error:
        raise RunError(
            f"{path} is not of a run: it has no {error}; name a folder that `trainer train` or `export.hub --run` wrote"
        ) from error
    except (OSError, ValueError, TypeError, ConfigError) as error:
        raise RunError(f"{path} cannot be read: {error}; copy the run again, or train again") from error


def save_model(run: Path, model: VAE) -> None:
    """Writes model.safetensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(run / MODEL, lambda file: file.write_bytes(save(tensors)))


def load_model(run: Path) -> VAE:
    """Builds the VAE of a run with its trained weights, on the CPU, in evaluation mode.

    Raises:
        RunError: the folder has no weights, or they are torn or of another architecture.
    """
    config, _ = load_config(run)
    path = run / MODEL
    if not path.is_file():
        raise RunError(f"{run} has no {MODEL}: its training has not finished an epoch; go on with --resume")
    with seeded(config.seed):  # first weights are drawn, to be replaced
        model = VAE(config.model)
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise RunError(
            f"{path} does not hold the weights of this run's model: {shorten(str(error), 200)}; copy the run again, or "
            "train again"
        ) from error
    return model.eval()


def save_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Writes checkpoint.pt."""
    buffer = io.BytesIO()  # a full disk must not meet PyTorch's zip writer, which may end the process
    torch.save(state, buffer)
    write_atomically(run / CHECKPOINT, lambda file: file.write_bytes(buffer.getbuffer()))


def load_checkpoint(run: Path) -> dict[str, Any]:
    """Reads checkpoint.pt.

    Raises:
        RunError: it is torn, or of another version.
    """
    path = run / CHECKPOINT
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds on a torn file
        said = f"{path} cannot be read or is no checkpoint ({type(error).__name__})"
        raise RunError(f"{said}; copy the run again, or train into a new folder") from error
    if state.get("version") != CHECKPOINT_VERSION:
        raise RunError(
            f"{path} is of another version of this project, which would go on otherwise; train into a new folder, "
            f"with --init-from {run} to start from its weights"
        )
    return state


def require_same(run: Path, config: TrainConfig, before: dict[str, Any]) -> None:
    """Lets a run go on that computes what it did: `before` is what `TrainConfig.to_json` gave then.

    Raises:
        RunError: names the preset or the fields that differ.
    """
    if not (differing := config.differences(before)):
        return
    if config.preset != before["preset"]:
        raise RunError(
            f"--preset {config.preset}: {run} was trained with --preset {before['preset']}; leave it out, as --resume "
            "takes what the run was trained with, or train into a new folder"
        )
    raise RunError(
        f"{run} was trained with another configuration ({'; '.join(differing)}); resume with the same one, or train "
        "into a new folder"
    )


def directions_command(run: Path, data: Path | None = None) -> str:
    """The command that makes a run's directions and prior again; `data` is its data set, where that is known."""
    return f"python -m trainer directions {quote(str(run))} --data {'DIR' if data is None else quote(str(data))}"


def mend_of(run: Path, data: Path | None = None) -> str:
    """What to do about directions or a prior that cannot be used, for people."""
    return f"make it anew with `{directions_command(run, data)}`"


def initial_weights(config: TrainConfig) -> dict[str, Tensor]:
    """The weights of the run that `config.init_from` names.

    Raises:
        ConfigError: it is no run, has no weights, or its model has other sizes.
    """
    run = config.init_from
    assert run is not None
    try:
        model = load_model(run)
    except RunError as error:
        raise ConfigError(f"--init-from {run}: {error}") from error
    ours, theirs = (dataclasses.asdict(sizes) for sizes in (config.model, model.config))
    differing = [f"{flag_of(name)} {theirs[name]}, not {ours[name]}" for name in ours if ours[name] != theirs[name]]
    if differing:
        raise ConfigError(f"--init-from {run}: its model has {', '.join(differing)}; give this run the same sizes")
    return model.state_dict()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def belongs(path: Path, model_sha256: str) -> bool:
    """Whether a file of directions or the prior is there and of these weights, as far as it says."""
    try:
        with safe_open(path, framework="np") as file:
            return (file.metadata() or {}).get("model_sha256") in (None, "", model_sha256)
    except (OSError, SafetensorError):
        return False
