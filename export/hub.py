"""A bundle in the layout of the Hugging Face Hub: model card, config.json, safetensors, and ONNX graphs in `onnx/`."""

from trainer.extras import require

if __name__ == "__main__":
    require("train")  # before what needs it is imported

import json
import os
import re
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from engine.bundle import DECODER, DIRECTIONS, ENCODER, PRIOR, Bundle, Manifest, sha256_of
from export import command
from export.bundle.output import check_free, publish, staging
from export.errors import InputError
from trainer.artifacts.model_card import Card, Measured, data_name
from trainer.run_folder import CARD, CONFIG, MODEL, load_config

GRAPHS = "onnx"
FLAG = "OUT"
# What the Hub takes as the name of a repository.
_NAME = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]{0,94}\w)?", re.ASCII)
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """What to publish, and where to put it."""

    bundle: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE")]
    """Bundle folder."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write; must not exist yet. Its name is the model's."""
    run: Path | None = None
    """Run folder that the bundle was built from: adds PyTorch's weights, and what `trainer evaluate` measured."""
    license: str = ""
    """License of the weights, by the Hub's name for it, such as apache-2.0; empty: still to be chosen."""


def write(config: HubConfig) -> None:
    """Writes the folder, as a whole or not at all.

    Raises:
        InputError: a flag, or the run, cannot be used; likewise RunError.
        EngineError: the bundle is damaged.
    """
    bundle, out = Bundle.load(config.bundle), config.out
    check_free(out, FLAG)
    if out.resolve().is_relative_to(config.bundle.resolve()):
        raise InputError(f"{FLAG} {out}: lies in {config.bundle}, which is only read; choose another place")
    if not _NAME.fullmatch(out.name):
        raise InputError(
            f"{FLAG} {out}: its name is the model's, and the Hub doesn't take {out.name!r}; use 1 to 96 of A-Z, a-z, "
            "0-9, _, - and ., neither - nor . at an end or twice in a row, and no .git"
        )
    if config.license and not _LICENSE.fullmatch(config.license):
        raise InputError(
            f"--license {config.license}: must be one of the Hub's names, such as apache-2.0 or cc-by-nc-4.0"
        )
    resolved: dict[str, Any] = {}
    if config.run is not None:
        if not _is_run_of(config.run, bundle.manifest):
            raise InputError(f"--run {config.run}: {bundle.path} was built from another model; name its own run")
        _, resolved = load_config(config.run)
    with staging(out, FLAG) as folder:
        (folder / GRAPHS).mkdir()
        for name in (ENCODER, DECODER):
            shutil.copyfile(bundle.path / name, folder / GRAPHS / name)
        # Not the bundle's proof, which has some of the images: they may not be ours to publish.
        for name in (DIRECTIONS, PRIOR):
            if name in bundle.manifest.files:
                shutil.copyfile(bundle.path / name, folder / name)
        settings = _settings(bundle.manifest)
        if config.run is not None:
            shutil.copyfile(config.run / MODEL, folder / MODEL)
            settings |= _run_settings(config.run, resolved)
        (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (folder / CARD).write_text(_card(config, bundle.manifest, resolved), encoding="utf-8")
        publish(folder, out, force=False, flag=FLAG)


def _is_run_of(run: Path, manifest: Manifest) -> bool:
    try:
        return sha256_of(run / MODEL) == manifest.run.get("model_sha256")
    except OSError as error:
        raise InputError(f"--run {run}: {MODEL} cannot be read ({error.strerror}); name a run folder") from error


def _settings(manifest: Manifest) -> dict[str, Any]:
    """What whoever runs the graphs has to know."""
    return {
        "model_type": "dfc-vae",
        "image_size": manifest.image_size,
        "latent_dim": manifest.latent_dim,
        "attributes": manifest.attributes,
        "preprocessing": asdict(manifest.preprocessing),
    }


def _run_settings(run: Path, resolved: dict[str, Any]) -> dict[str, Any]:
    """The run's own config.json, which `VAE.from_pretrained` reads, without the places of this machine."""
    values: dict[str, Any] = json.loads((run / CONFIG).read_text(encoding="utf-8"))
    for name, value in values["config"].items():
        if isinstance(value, str) and os.sep in value:
            values["config"][name] = Path(value).name
    return {**values, "resolved": {**resolved, "data": data_name(resolved)}}


def _card(config: HubConfig, manifest: Manifest, resolved: dict[str, Any]) -> str:
    run, images = config.run, manifest.run.get("data", {}).get("images", {}).get("train", 0)
    measured = Measured.of(run) if run else Measured("", [])
    return Card(
        name=config.out.name,
        preset=manifest.run.get("preset", "unknown"),
        size=manifest.image_size,
        latent_dim=manifest.latent_dim,
        data=data_name(resolved) if run else "",
        images=f"{images:,}",
        attributes=manifest.attributes,
        results=measured.results,
        measured_on=measured.data,
        weights=run is not None,
        onnx=True,
        parity=_parity(manifest),
        license=config.license,
    ).text()


def _parity(manifest: Manifest) -> str:
    """How well the graphs agree with PyTorch, of a manifest that may not say."""
    found = manifest.parity.get("stages", {}).get("portable", {}).get("images", {})
    levels = [figures["max_levels"] for figures in found.values()]
    if not levels:
        return ""
    apart = "is the same" if not max(levels) else f"differs by at most {max(levels)} of 255"
    return f"on {manifest.parity['samples']} images and as many random latents, every pixel {apart}"


def work(config: HubConfig) -> None:
    """The command's work."""
    write(config)
    upload = shlex.join(["hf", "upload", f"USER/{config.out.name}", str(config.out)])
    print(f"wrote {config.out}; look through its {CARD}, then: {upload}")


main = partial(command.run, HubConfig, work, prog="python -m export.hub", doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
