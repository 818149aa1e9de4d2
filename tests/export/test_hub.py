"""A bundle in the Hub's layout, read back by Hugging Face's own library and by ONNX Runtime, without a network."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builds import plain, silent
from huggingface_hub import ModelCard, snapshot_download
from onnxruntime import InferenceSession
from runs import ATTRIBUTES, LATENT_DIM, PRIVATE_PATH, write_run
from safetensors.numpy import load_file

from engine.bundle import PROOF, Bundle
from engine.proof.truth import Truth
from export import hub
from export.build_engines import build
from trainer import VAE
from trainer.errors import RunError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that was measured, and its bundle."""
    folder = tmp_path_factory.mktemp("made")
    run, bundle = write_run(folder / "run"), folder / "bundle"
    (run / "metrics.json").write_text(json.dumps({"reconstruction": {"psnr_db": 21.987, "ssim": 0.61}}))
    build(plain(run=run, out=bundle), silent)
    return run, bundle


def downloaded(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `snapshot_download` finds in a cache where this repository was downloaded once."""
    repository = cache / "models--me--faces"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(folder, repository / "snapshots" / "abc")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Path(snapshot_download("me/faces", cache_dir=cache, local_files_only=True))


def test_what_was_published_answers_as_pytorch_did(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, bundle = made
    out = tmp_path / "faces"
    assert hub.main([str(bundle), str(out), "--run", str(run), "--license", "cc-by-nc-4.0"]) == 0
    assert f"hf upload USER/faces {out}" in capsys.readouterr().out
    folder = downloaded(out, tmp_path / "cache", monkeypatch)

    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "cc-by-nc-4.0",
        "dfc-vae",
        "image-to-image",
    )
    assert "onnx" in card.data.tags
    assert [(one.metric_type, one.metric_value) for one in card.data.eval_results] == [("psnr", 21.99), ("ssim", 0.61)]
    for fact in ("onnx/{part}.onnx", "VAE.from_pretrained", "every pixel", "License of the weights: cc-by-nc-4.0."):
        assert fact in card.text
    config = json.loads((folder / "config.json").read_text())
    assert (config["image_size"], config["latent_dim"], config["attributes"]) == (64, LATENT_DIM, list(ATTRIBUTES))
    assert config["preprocessing"]["crop"] == 148
    assert not [file for file in folder.rglob("*") if file.is_file() and PRIVATE_PATH.encode() in file.read_bytes()]

    truth = Truth.load(bundle / PROOF, 64, LATENT_DIM)
    encoder, decoder = (InferenceSession(folder / "onnx" / f"{part}.onnx") for part in ("encoder", "decoder"))
    mu, log_var = encoder.run(None, {"images": truth.images})
    (decoded,) = decoder.run(None, {"latents": truth.answers["mu"]})
    np.testing.assert_allclose(mu, truth.answers["mu"], atol=1e-3)
    np.testing.assert_allclose(log_var, truth.answers["log_var"], atol=1e-3)
    assert np.abs(decoded.astype(int) - truth.answers["decode"]).max() <= 1
    assert load_file(folder / "directions.safetensors")["directions"].shape == (len(ATTRIBUTES), LATENT_DIM)


def test_the_cards_code_edits_as_the_server_does(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, bundle = made
    out = tmp_path / "faces"
    assert hub.main([str(bundle), str(out)]) == 0
    folder = downloaded(out, tmp_path / "cache", monkeypatch)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: str(folder))
    images = Truth.load(bundle / PROOF, 64, LATENT_DIM).images[:4]
    names: dict[str, Any] = {"images": images}
    exec(ModelCard.load(folder / "README.md").text.split("```python\n")[1].split("```")[0], names)

    attribute = ATTRIBUTES[0]
    edited, unedited = (VAE.from_pretrained(run, "cpu").edit(images, {attribute: strength}) for strength in (1.5, 0.0))
    assert np.abs(edited.astype(int) - unedited).max() > 1
    assert np.abs(names["edited"].astype(int) - edited).max() <= 1


def test_pytorch_reads_it_too(made: tuple[Path, Path], tmp_path: Path) -> None:
    from trainer import VAE

    run, bundle = made
    assert hub.main([str(bundle), str(tmp_path / "faces"), "--run", str(run)]) == 0
    theirs, ours = VAE.from_pretrained(tmp_path / "faces", "cpu"), VAE.from_pretrained(run, "cpu")
    images = Truth.load(bundle / PROOF, 64, LATENT_DIM).images[:4]
    np.testing.assert_array_equal(theirs.encode(images), ours.encode(images))
    assert theirs.edit(images, {"Smiling": 1.0}).shape == images.shape


def test_a_bundle_alone_is_enough(made: tuple[Path, Path], tmp_path: Path) -> None:
    _, bundle = made
    assert hub.main([str(bundle), str(tmp_path / "faces")]) == 0
    card = ModelCard.load(tmp_path / "faces" / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "to-be-chosen")
    assert "VAE.from_pretrained" not in card.text
    assert "not been measured" not in card.text  # nobody knows: that is in the run
    assert "`python -m export.hub --run` adds figures" in card.text
    with pytest.raises(RunError, match=r"config\.json is not of a run: it has no 'format_version'; name a folder that"):
        VAE.from_pretrained(tmp_path / "faces")
    assert {file.name for file in (tmp_path / "faces").iterdir()} == {
        "README.md",
        "config.json",
        "directions.safetensors",
        "onnx",
        "prior.safetensors",
    }


def test_what_can_not_be_used_is_said(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, bundle = made
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "model.safetensors").write_bytes(b"other weights")
    torn = Path(shutil.copytree(run, tmp_path / "torn"))
    (torn / "config.json").write_text("{")
    out = tmp_path / "out"
    for arguments, message in (
        ((tmp_path, out), "is not a bundle"),
        ((bundle, other), f"OUT {other}: exists already; choose another place"),
        ((bundle, other / "config.json" / "out"), "config.json cannot be written to (Not a directory)"),
        ((bundle, bundle / "out"), f"lies in {bundle}, which is only read; choose another place"),
        (
            (bundle, tmp_path / "mein Gesicht"),
            "the Hub doesn't take 'mein Gesicht'; use 1 to 96 of A-Z, a-z, 0-9, _, -",
        ),
        ((bundle, tmp_path / "a--b"), "the Hub doesn't take 'a--b'"),
        ((bundle, out, "--run", other), "was built from another model; name its own run"),
        ((bundle, out, "--run", torn), "config.json cannot be read: "),
        ((bundle, out, "--run", tmp_path), "model.safetensors cannot be read (No such file or directory); name a run"),
        ((bundle, out, "--license", "My own"), "--license My own: must be one of the Hub's names, such as apache-2.0"),
    ):
        assert hub.main([*map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()
    assert Bundle.load(bundle).path == bundle
