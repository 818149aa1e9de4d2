import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer import run_folder
from trainer.config import TrainConfig
from trainer.data import FaceData, load_data
from trainer.data.celeba import IMAGES
from trainer.errors import ConfigError, RunError
from trainer.evaluation import generation, networks
from trainer.evaluation.classifier import CLASSIFIER, Classifier, Network
from trainer.evaluation.encoded_run import Autoencoder, EncodedRun, Floats, Images
from trainer.evaluation.evaluate import Evaluation, evaluate, evaluate_autoencoder
from trainer.evaluation.networks import MetricNetwork, MetricNetworks
from trainer.evaluation.options import Options
from trainer.hardware.device import Placement
from trainer.loss.vgg import load_backbone
from trainer.run_folder import EVALUATION, write_json
from trainer.training import train

pytestmark = pytest.mark.usefixtures("coarse")

CPU = Placement.of("cpu", "fp32")
FIGURES = {
    "attribute_accuracy",
    "attribute_correlation",
    "encoding_distribution",
    "interpolations",
    "interpolations_along_the_prior",
    "kl_per_dimension",
    "reconstructions",
    "samples_fitted",
    "samples_standard",
    "training_curves",
    "tsne",
    "conditions",
}


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run that a test may write to."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def short_vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG19 up to relu1_1, with random weights."""
    path = tmp_path_factory.mktemp("weights") / "vgg.pth"
    torch.save({"features.0.weight": torch.randn(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}, path)
    return path


def strict(path: Path) -> dict[str, object]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    values: dict[str, object] = json.loads(path.read_text(), parse_constant=refuse)
    return values


@pytest.mark.usefixtures("offline")
def test_everything_is_measured_drawn_and_shown(run: Path, data: FaceData) -> None:
    metrics = evaluate(run, data, Options(strength=1.0, seed=3))
    assert strict(run / "metrics.json") == json.loads(json.dumps(metrics))
    judged = metrics["evaluation"]["data"]
    assert judged["images"] == {"train": 160, "val": 20, "test": 20}
    assert (judged["name"], judged["fingerprint"], judged["runs_own"]) == ("faces", data.fingerprint, True)
    assert metrics["attribute_prediction"]["average_precision_mean"] > 0.2
    assert "--identity-weights" in metrics["edits"]["distances"]["identity"]["skipped"]
    assert 5 < metrics["reconstruction"]["psnr_db"] < 40
    assert 0 < metrics["reconstruction"]["ssim"] < 1
    edits = {(edit["attribute"], edit["strength"]) for edit in metrics["edits"]["edits"]}
    assert edits == {(name, sign * 1.0) for name in ("Smiling", "Eyeglasses") for sign in (1, -1)}
    assert metrics["encoding"]["latent_dim"] == len(metrics["encoding"]["per_dimension"]["kl_nats"]) == 16
    assert 0.5 < metrics["attribute_prediction"]["accuracy_mean"] <= 1
    assert 0.5 < metrics["classifier"]["accuracy_mean"] <= 1
    for part, name in (("reconstruction", "lpips"), ("reconstruction", "features"), ("generation", "fid")):
        assert "does not exist and" in metrics[part][name]["skipped"]
    html = (run / "report.html").read_text()
    for name in FIGURES:
        assert (run / "figures" / f"{name}.png").stat().st_size > 3000
    assert html.count("<img") == len(list((run / "figures").glob("*.png")))
    assert "--lpips-weights" in html


@pytest.mark.usefixtures("offline")
def test_data_without_attributes_are_judged_as_far_as_they_go(faces: Path, tmp_path: Path, small: TrainConfig) -> None:
    folder = Path(shutil.copytree(faces / IMAGES, tmp_path / "plain"))
    data = load_data(folder, 32, 148)
    train(replace(small, epochs=1), data, tmp_path / "run")
    metrics = evaluate(tmp_path / "run", data, Options(skip=("tsne",)))
    for part in ("attribute_prediction", "classifier", "edits"):
        assert "needs attributes" in metrics[part]["skipped"]
    assert "this run has 0" in metrics["vectors"]["skipped"]
    assert metrics["reconstruction"]["psnr_db"] > 5
    drawn = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert drawn == FIGURES - {"attribute_accuracy", "attribute_correlation", "tsne", "conditions"}


def test_one_attribute_is_enough_to_edit(faces: Path, small: TrainConfig, tmp_path: Path) -> None:
    labels = load_data(faces, 32, 148).index
    smiling = labels.labels[:, labels.attributes.index("Smiling")].astype(int)
    rows = [f"{name},{value}" for name, value in zip(labels.files, smiling, strict=True)]
    (tmp_path / "own.csv").write_text("\n".join(["file,Grin", *rows]) + "\n")
    images = load_data(faces / "img_align_celeba", 32, 148, labels=tmp_path / "own.csv")
    train(replace(small, epochs=1), images, tmp_path / "run")
    metrics = evaluate(tmp_path / "run", images, Options(skip=("vgg", "lpips", "fid", "tsne")))
    assert {edit["attribute"] for edit in metrics["edits"]["edits"]} == {"Grin"}
    assert "Grin is the data set's only attribute" in metrics["edits"]["rescoring"]["skipped"]
    assert "Grin" in (tmp_path / "run" / "report.html").read_text()


def test_bad_files_are_refused_before_any_work(run: Path, data: FaceData, tmp_path: Path) -> None:
    for name in ("vgg", "lpips", "inception"):
        options = replace(Options(), **{f"{name}_weights": tmp_path / "none.pth"})  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=f"--{name}-weights .*none.pth: no such file"):
            evaluate(run, data, options)
    assert not (run / "metrics.json").exists()
    (run / "directions.safetensors").unlink()
    with pytest.raises(RunError, match=r"directions.safetensors does not exist; make it anew with `python"):
        evaluate(run, data, Options(skip=("vgg", "lpips", "fid")))


def test_one_test_image_is_enough_for_what_needs_no_more(run: Path, data: FaceData, short_vgg: Path) -> None:
    splits = data.index.splits.copy()
    splits[data.rows("test")[1:]] = 0
    one = replace(data, index=replace(data.index, splits=splits))
    metrics = evaluate(run, one, Options(skip=("vgg", "lpips", "fid", "edits")))
    assert metrics["evaluation"]["data"]["images"]["test"] == 1
    assert {path.stem for path in (run / "figures").glob("*.png")} == FIGURES - {
        "interpolations",
        "interpolations_along_the_prior",
        "tsne",
    }
    encoded = EncodedRun.of(run, one, CPU)
    features = networks.Features(load_backbone(("relu1_1",), short_vgg, seed=0), CPU)
    none: MetricNetwork[Any] = MetricNetwork(None, "none")
    seen = MetricNetworks(MetricNetwork(features, "made up"), none, none, none)
    measured = generation.measure(encoded, seen, Options())
    assert "needs 2 images on both sides, and there are 1 samples" in measured["frechet_vgg19"]["skipped"]


def test_the_file_that_a_run_was_trained_with_may_be_too_short(small: TrainConfig, short_vgg: Path) -> None:
    config = replace(small, taps=("relu1_1",), vgg_weights=short_vgg)
    found = MetricNetworks.of(Options(skip=("lpips", "fid")), config.vgg_weights, CPU)
    assert found.vgg.network is None
    assert "the file that the run was trained with will not do" in found.vgg.description
    assert found.lpips.description == "left out by --skip lpips"
    with pytest.raises(ConfigError, match=r"vgg\.pth lacks features\."):
        MetricNetworks.of(Options(vgg_weights=short_vgg, skip=("lpips", "fid")), config.vgg_weights, CPU)


QUICK = Options(skip=("vgg", "lpips", "fid", "tsne", "edits"))


def other(data: FaceData) -> FaceData:
    """The same faces, one label apart."""
    labels = data.index.labels.copy()
    labels[0, 0] ^= True
    return replace(data, index=replace(data.index, labels=labels), fingerprint="f" * 64)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, which take most of the time."""
    monkeypatch.setattr("trainer.evaluation.evaluate.draw", lambda *_: [])


@pytest.mark.usefixtures("undrawn")
def test_a_report_of_other_data_is_neither_silent_nor_written_over_another(
    run: Path, data: FaceData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate(run, data, QUICK)
    assert "not the data that" not in caplog.text
    own = (run / EVALUATION).read_text()
    with pytest.raises(
        RunError, match=r"run holds the report of another data set \(faces\).* --out FOLDER, .* --force"
    ):
        evaluate(run, other(data), QUICK)
    assert (run / EVALUATION).read_text() == own
    elsewhere = tmp_path / "new" / "elsewhere"
    metrics = evaluate(run, other(data), replace(QUICK, out=elsewhere))
    assert "is not the data that run, preset plain was trained on" in caplog.text
    assert metrics["evaluation"]["data"]["runs_own"] is False
    assert strict(elsewhere / EVALUATION) == json.loads(json.dumps(metrics))
    assert "not the one that the run was trained on" in (elsewhere / "report.html").read_text()
    assert (run / EVALUATION).read_text() == own
    assert evaluate(run, other(data), replace(QUICK, force=True)) != json.loads(own)
    with pytest.raises(RunError, match="holds the report of another data set"):
        evaluate(run, data, QUICK)


@pytest.mark.usefixtures("undrawn")
def test_pictures_of_a_report_do_not_become_data(run: Path, data: FaceData) -> None:
    for out in (data.index.root, data.index.root / "report"):
        with pytest.raises(RunError, match=rf"--out {out}: lies inside the data set"):
            evaluate(run, data, replace(QUICK, out=out))


def test_a_report_of_another_run_is_not_replaced(run: Path, data: FaceData, tmp_path: Path) -> None:
    evaluate(run, data, QUICK)
    own = (run / EVALUATION).read_text()
    another = Path(shutil.copytree(run, tmp_path / "another"))
    with pytest.raises(RunError, match=rf"--out {run}: is the folder of another run than {another}.* with --force"):
        evaluate(another, data, replace(QUICK, out=run))
    assert (run / EVALUATION).read_text() == own
    (tmp_path / "link").symlink_to(run)
    evaluate(run, data, replace(QUICK, out=tmp_path / "link"))
    evaluate(another, data, replace(QUICK, out=run, force=True))


@pytest.mark.parametrize("name", ["figures/mine.png", "metrics.json", "report.html"])
def test_what_no_evaluation_wrote_is_not_replaced(run: Path, data: FaceData, tmp_path: Path, name: str) -> None:
    mine = tmp_path / "paper" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(
        RunError, match=rf"paper holds {Path(name).parts[0]}, which no evaluation wrote; choose another"
    ):
        evaluate(run, data, replace(QUICK, out=tmp_path / "paper"))
    assert mine.read_text() == "mine"
    assert [path for path in (tmp_path / "paper").rglob("*") if path.is_file()] == [mine]


def test_what_an_interrupted_evaluation_left_is_replaced(
    run: Path, data: FaceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(encoded: EncodedRun, metrics: dict[str, Any], folder: Path, evaluation: Evaluation) -> None:
        folder.mkdir(exist_ok=True)
        raise KeyboardInterrupt

    options = replace(QUICK, out=tmp_path / "elsewhere")
    monkeypatch.setattr("trainer.evaluation.evaluate.draw", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluate(run, data, options)


@pytest.mark.usefixtures("undrawn")
def test_two_evaluations_do_not_share_a_folder(run: Path, data: FaceData, tmp_path: Path) -> None:
    with run_folder.occupied(run, 0):
        with pytest.raises(RunError, match="is in use: another process works there; wait for it, or choose another"):
            evaluate(run, data, QUICK)
        evaluate(run, data, replace(QUICK, out=tmp_path / "elsewhere"))


@pytest.mark.usefixtures("undrawn")
def test_a_report_of_an_earlier_version_counts_as_of_the_runs_own_data(run: Path, data: FaceData) -> None:
    (run / EVALUATION).write_text('{"evaluation": {"seed": 0}}')
    with pytest.raises(RunError, match="name unknown"):
        evaluate(run, other(data), QUICK)
    evaluate(run, data, QUICK)


def test_any_encoder_and_decoder_can_be_judged(data: FaceData, tmp_path: Path) -> None:
    """One that gives points: the mean colours of a four by four grid. Three attributes are enough here."""
    names = ("Smiling", "Eyeglasses", "Male")
    labels = data.index.labels[:, [data.index.attributes.index(name) for name in names]]
    data = replace(data, index=replace(data.index, attributes=names, labels=labels))
    judge = tmp_path / CLASSIFIER
    shares = dict.fromkeys(names, 0.75)
    Classifier(Network(3).eval(), names, shares, shares, CPU).save(judge, data.fingerprint)

    def encode(images: Images) -> tuple[Floats, None]:
        assert images.dtype == np.uint8
        assert images.shape[1:] == (32, 32, 3)
        return images.reshape(-1, 4, 8, 4, 8, 3).mean((2, 4)).reshape(-1, 48).astype(np.float32) / 255, None

    def decode(latents: Floats) -> Images:
        levels = (latents.reshape(-1, 4, 4, 3).clip(0, 1) * 255).round().astype(np.uint8)
        return levels.repeat(8, 1).repeat(8, 2)

    options = Options(judge=judge, skip=("vgg", "lpips", "fid", "tsne", "rescoring"))
    training = {"images": 160, "epochs": 1, "images_per_second": 9.0}
    metrics = evaluate_autoencoder(
        Autoencoder(encode, decode), data, tmp_path / "theirs", options, name="means", training=training
    )
    assert metrics == strict(tmp_path / "theirs" / EVALUATION)
    assert metrics["training"] == training
    assert metrics["encoding"]["kl_nats"] is None
    assert metrics["encoding"]["latent_dim"] == 48
    blocks = data.images[data.rows("test")].astype(float).reshape(-1, 4, 8, 4, 8, 3)
    error = np.square((blocks - blocks.mean((2, 4), keepdims=True)) / 255).mean((1, 2, 3, 4, 5))
    assert metrics["reconstruction"]["psnr_db"] == pytest.approx((-10 * np.log10(error)).mean(), abs=0.05)
    assert metrics["edits"]["curves"]["attributes"]
    assert metrics["classifier"]["accuracy"] == shares
    assert metrics["edits"]["rescoring"] == {"skipped": "left out by --skip rescoring"}
    assert (tmp_path / "theirs" / CLASSIFIER).exists()
    assert "means" in (tmp_path / "theirs" / "report.html").read_text()


def test_a_judge_of_other_data_is_refused_before_anything_is_encoded(data: FaceData, tmp_path: Path) -> None:
    def encode(images: Images) -> tuple[Floats, None]:
        raise AssertionError("long work began")

    options = Options(judge=tmp_path / "none.safetensors", skip=("vgg", "lpips", "fid"))
    with pytest.raises(ConfigError, match=r"--judge .*none.safetensors: is missing, torn or of other data than"):
        evaluate_autoencoder(Autoencoder(encode, lambda _: data.images), data, tmp_path / "theirs", options)


def test_options_out_of_range_name_the_flag() -> None:
    for strength in (0.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"--strength {strength}: must be above 0, and finite"):
            Options(strength=strength)
    with pytest.raises(ConfigError, match="--seed -1: must lie between"):
        Options(seed=-1)


def test_a_subject_is_encoded_once_and_decodes_what_it_encoded(trained: Path, data: FaceData) -> None:
    encoded = EncodedRun.of(trained, data, CPU)
    assert encoded.log_var is not None
    assert encoded.mu.shape == encoded.log_var.shape == (20, 16)
    assert encoded.train_mu.shape == (160, 16)
    assert encoded.val_mu.shape == (20, 16)
    assert np.array_equal(encoded.images, data.images[data.rows("test")])
    assert np.array_equal(encoded.labels, data.index.labels[data.rows("test")])
    assert encoded.reconstructions is encoded.reconstructions
    assert np.array_equal(encoded.reconstructions[3:5], encoded.decode(encoded.mu[3:5]))


def test_metrics_are_strict_json(tmp_path: Path) -> None:
    values = {"a": [1.5, -2e-7, 3], "names": ["x [\n1 ]", "y"], "nested": [[1, 2], [3, 4]], "none": None, "empty": []}
    write_json(tmp_path / "m.json", values)
    assert strict(tmp_path / "m.json") == values
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "m.json", {"a": float("nan")})
    assert strict(tmp_path / "m.json") == values
