"""Edits of images that are one colour each: latents are its channels, and the judge sees which of them are bright."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.latents import FITTED, Directions, Gaussian
from trainer.artifacts.directions import mean_differences
from trainer.config import ModelConfig
from trainer.data import FaceData, Index
from trainer.evaluation.classifier import Classifier, Network
from trainer.evaluation.edits import conditions, curves, matrix
from trainer.evaluation.edits import figures as edit_figures
from trainer.evaluation.edits.faces import EditedFaces
from trainer.evaluation.edits.quality import EditQuality, best_strength, quality
from trainer.evaluation.encoded_run import Autoencoder, EncodedRun
from trainer.evaluation.networks import MetricNetwork, MetricNetworks
from trainer.evaluation.options import Options
from trainer.evaluation.skipped import SkippedError
from trainer.hardware.device import Placement
from trainer.model import VAE, Posterior

pytestmark = pytest.mark.usefixtures("coarse")

CPU = Placement.of("cpu", "fp32")
NAMES = ("Smiling", "Eyeglasses", "Male")  # red, green and blue
NOTHING: MetricNetwork[nn.Module] = MetricNetwork(None, "no weights here")
SIZE = 32


class Seer(Network):
    """Sees the first attributes in the brightness of the channels."""

    def __init__(self, attributes: int = 3) -> None:
        super().__init__(attributes)
        self.attributes = attributes

    def forward(self, images: Tensor) -> Tensor:
        return 10 * (images.mean((2, 3))[:, : self.attributes] - 0.5)


class Blind(Network):
    """Sees nothing anywhere."""

    def __init__(self) -> None:
        super().__init__(3)

    def forward(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 3), -1.0)


class Mixer(nn.Module):
    """Paints images in the colour of the latent."""

    def forward(self, latents: Tensor) -> Tensor:
        return torch.sigmoid(latents)[:, :, None, None].expand(-1, -1, SIZE, SIZE)


class Sampler(nn.Module):
    """Reads the latent off the colour."""

    def forward(self, images: Tensor) -> Posterior:
        mu = torch.logit(images.mean((2, 3)), eps=1e-3)
        return Posterior(mu, torch.full_like(mu, -6.0))


def seer() -> Classifier:
    return Classifier(Seer().eval(), NAMES, dict.fromkeys(NAMES, 1.0), dict.fromkeys(NAMES, 0.6), CPU)


@pytest.fixture
def encoded(tmp_path: Path) -> EncodedRun:
    """600 colours, half of them train; red is bright where green is, more often than not; 20 dimensions hold noise."""
    random = np.random.default_rng(0)
    colours = 1.5 * random.standard_normal((600, 3)).astype(np.float32)
    colours[:, 0] += 0.8 * colours[:, 1]
    images = np.tile((255 / (1 + np.exp(-colours))).round().astype(np.uint8)[:, None, None], (1, SIZE, SIZE, 1))
    splits = np.repeat(np.array([0, 1, 2], np.int8), [300, 100, 200])
    index = Index(tmp_path, tmp_path, tuple(map(str, range(600))), NAMES, images[:, 0, 0] > 127, splits)
    data = FaceData(index, images, "colours")
    model = VAE(ModelConfig(image_size=SIZE, latent_dim=3, channels=(4, 4, 4)))
    model.encoder, model.decoder = Sampler(), Mixer()  # type: ignore[assignment]
    rows = {split: data.rows(split) for split in ("train", "test")}
    mu = {split: model.encoder(CPU.images(images[of])).mu.numpy() for split, of in rows.items()}
    vectors = mean_differences(mu["train"], index.labels[rows["train"]]).astype(np.float32)
    positives = tuple(index.labels[rows["train"]].sum(0).tolist())
    negatives = tuple(300 - count for count in positives)
    directions = Directions(NAMES, vectors, positives, negatives, "train", kinds=("mean",) * 3)
    log_var = np.full_like(mu["test"], -6.0)
    return EncodedRun(
        Autoencoder.of(model.eval().encoder, model.decoder, CPU),
        data,
        CPU,
        mu["test"],
        log_var,
        mu["train"],
        directions,
        {FITTED: Gaussian.standard(3)},
    )


def metric_networks(lpips: MetricNetwork[nn.Module] = NOTHING) -> MetricNetworks:
    return MetricNetworks(
        MetricNetwork(None, "no weights here"), lpips, MetricNetwork(None, ""), MetricNetwork(None, "no weights here")
    )


def colour(red: int, green: int, blue: int = 0) -> np.ndarray:
    return np.tile(np.array([red, green, blue], np.uint8), (1, SIZE, SIZE, 1))


def test_flips_and_kept_predictions_are_counted_on_faces_that_need_the_edit() -> None:
    before = np.concatenate([colour(0, 0), colour(0, 0), colour(0, 255), colour(0, 255), colour(255, 0)])
    after = np.concatenate([colour(255, 0), colour(0, 0), colour(255, 255), colour(255, 0), colour(255, 255)])
    seen, seen_after = seer().logits(before), seer().logits(after)
    found = quality(NAMES, "Smiling", 1.5, seen, seen_after)
    assert found.faces == 4  # the last one is red before
    assert found.flipped == pytest.approx(3 / 4)
    assert found.kept == pytest.approx(7 / 8)  # green goes away in the fourth
    removed = quality(NAMES, "Smiling", -1.5, seen_after, seen)
    assert removed.faces == 4
    assert removed.flipped == pytest.approx(3 / 4)


def test_where_no_face_needs_the_edit_there_is_no_share() -> None:
    logits = np.ones((3, 2), np.float32)
    assert quality(("a", "b"), "a", 1.0, logits, -logits) == EditQuality("a", 1.0, 0, None, None)


def test_a_change_is_in_sigmas_and_positive_for_what_goes_along_with_the_edit() -> None:
    before = np.zeros((2, 3), np.float32)
    after = np.array([[-4, 1, 5], [-8, 3, 5]], np.float32)
    assert np.allclose(matrix.change(before, after, np.array([2.0, 4.0, 0.0]), strength=-1.5), [3.0, -0.5, 0.0])


def test_the_best_flip_is_found_between_two_strengths() -> None:
    curve = [
        EditQuality("a", strength, 10, flipped, kept)
        for strength, flipped, kept in ((-1.0, 0.4, 0.98), (-2.0, 0.8, 0.88), (-3.0, 1.0, 0.7))
    ]
    assert best_strength(curve, 0.9) == pytest.approx(-1.8)
    assert best_strength(curve, 0.5) == -3.0
    assert best_strength(curve[1:], 0.94) == pytest.approx(-1.0)  # from no edit at all to the first strength
    assert best_strength([EditQuality("a", 1.0, 0, None, None)], 0.9) is None
    useless = [EditQuality("a", strength, 10, 0.0, kept) for strength, kept in ((-1.0, 0.95), (-2.0, 0.8))]
    assert best_strength(useless, 0.9) == -1.0  # of the side that was asked for, not 0, which is of none


def test_the_judge_is_measured_on_reconstructions_too(encoded: EncodedRun) -> None:
    found = seer().trust(encoded.reconstructions, encoded.labels)
    assert found["reconstructions"]["accuracy_mean"] > 0.98
    assert found["unsure"] == []
    found = replace(seer(), network=Blind().eval()).trust(encoded.reconstructions, encoded.labels)
    assert found["accuracy_mean"] == 1.0  # on images, as it was told
    assert set(found["unsure"]) == set(NAMES)


def test_side_effects_stand_off_the_diagonal_and_keep_takes_them_away(
    encoded: EncodedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "NUM_KEPT", 1)
    found = matrix.rescoring(EditedFaces.of(encoded, seer(), "test"), EditedFaces.of(encoded, seer(), "val"), 1.0)
    assert found["edited"] == found["judged"] == list(NAMES)
    assert found["kept_directions"]["Smiling"] == ["Eyeglasses"]
    plain, keep = (np.array(found[mode]["matrix"]) for mode in ("plain", "keep"))
    assert (np.diag(plain) > 1).all()
    assert plain[0, 1] > 0.4  # red and green go together
    assert abs(plain[0, 2]) < 0.2
    assert abs(keep[0, 1]) < abs(plain[0, 1])
    assert found["plain"]["others"] > found["keep"]["others"]
    assert found["plain"]["target"] == pytest.approx(np.diag(plain).mean(), abs=1e-3)
    assert found["plain"]["attributes"]["Male"]["adding"]["flipped"] > 0.7


def test_edits_that_keep_leaves_nothing_of_are_named_and_count_in_no_mean(
    encoded: EncodedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "NUM_KEPT", 1)
    vectors = encoded.directions.vectors.copy()
    vectors[0] = vectors[1]  # a smile that is nothing but glasses
    same = replace(encoded, directions=replace(encoded.directions, vectors=vectors))
    found = matrix.rescoring(EditedFaces.of(same, seer(), "test"), EditedFaces.of(same, seer(), "val"), 1.0)
    assert found["nothing_left"] == ["Smiling", "Eyeglasses"]
    assert found["keep"]["attributes"]["Smiling"] == {"adding": None, "removing": None}
    assert found["keep"]["target"] == pytest.approx(found["keep"]["matrix"][2][2], abs=1e-3)
    measured = {"rescoring": found, "strength": 1.0, "curves": {"attributes": {}}}
    *_, last = edit_figures.draw(same, measured, [], tmp_path)
    assert "nothing is left of Smiling, Eyeglasses" in last.look_for


def test_every_kind_of_direction_is_compared(encoded: EncodedRun) -> None:
    found = curves.curves(EditedFaces.of(encoded, seer(), "test"), EditedFaces.of(encoded, seer(), "val"))
    assert found["served"] == "mean"
    for kinds in (sides[side] for sides in found["attributes"].values() for side in ("adding", "removing")):
        assert set(kinds) == {"mean", "adjusted", "svm"}
        flips = [point["flipped"] for point in kinds["mean"]["points"]]
        assert flips == sorted(flips)
        assert flips[-1] == 1.0
    own = curves.curves(EditedFaces.of(encoded, seer(), "test"), EditedFaces.of(encoded, seer(), "val"), compare=False)[
        "attributes"
    ]
    assert own["Smiling"]["adding"] == {"mean": found["attributes"]["Smiling"]["adding"]["mean"]}
    adding = found["attributes"]["Eyeglasses"]["adding"]
    assert adding["adjusted"]["points"][1]["kept"] > adding["mean"]["points"][1]["kept"]  # green without red
    # The file says the kind; what is measured under its name are the stored directions themselves.
    turned = replace(encoded.directions, vectors=-encoded.directions.vectors, kinds=("svm",) * 3)
    other = replace(encoded, directions=turned)
    found = curves.curves(EditedFaces.of(other, seer(), "test"), EditedFaces.of(other, seer(), "val"))
    assert found["served"] == "svm"
    assert found["attributes"]["Smiling"]["adding"]["svm"]["points"][-1]["flipped"] == 0.0


@pytest.mark.parametrize("kinds", [(), ("mean", "svm", "mean")])
def test_directions_of_no_one_kind_are_compared_beside_all_kinds(encoded: EncodedRun, kinds: tuple[str, ...]) -> None:
    turned = replace(encoded.directions, vectors=-encoded.directions.vectors, kinds=kinds)
    other = replace(encoded, directions=turned)
    found = curves.curves(EditedFaces.of(other, seer(), "test"), EditedFaces.of(other, seer(), "val"))
    assert found["served"] == "served"
    assert found["attributes"]["Smiling"]["adding"]["served"]["points"][-1]["flipped"] == 0.0


def test_the_strength_is_chosen_on_val_and_measured_on_test(encoded: EncodedRun) -> None:
    """Val faces are far from red: they need four times the strength that test faces do."""
    mu = encoded.val_mu.copy()
    encoded.__dict__["val_mu"] = mu * np.array([4, 1, 1], np.float32)
    test, val = EditedFaces.of(encoded, seer(), "test"), EditedFaces.of(encoded, seer(), "val")
    found = curves.curves(test, val)["attributes"]["Smiling"]["adding"]["mean"]
    best = found["best"]
    alone = curves.curves(test, test)["attributes"]["Smiling"]["adding"]["mean"]["best"]
    assert best["strength"] > alone["strength"]
    faces = test.lacking("Smiling", 1.0, curves.CURVE_FACES)
    after = test.after(faces, encoded.directions["Smiling"], best["strength"])
    assert best == asdict(test.quality(faces, "Smiling", best["strength"], after))


def test_faces_that_go_as_far_as_they_need_go_less_far_than_all_alike(encoded: EncodedRun) -> None:
    sides = ((-0.5, 0.5),) * 3
    known = replace(encoded, directions=replace(encoded.directions, sides=sides))
    test, val = EditedFaces.of(known, seer(), "test"), EditedFaces.of(known, seer(), "val")
    found = conditions.compare(test, val, NAMES[:2], MetricNetwork(None, "none"))
    assert found["network"] == "none"
    assert set(found["edits"]) == {f"{side} {name}" for side in ("adding", "removing") for name in NAMES[:2]}
    for ways in found["edits"].values():
        conditional, alike = ways["conditional"], ways["alike"]
        assert conditional["faces"] == alike["faces"] > 0
        assert conditional["identity"] is alike["identity"] is None
        assert alike["flipped"] == pytest.approx(conditional["flipped"], abs=0.1)
        assert 0 < conditional["strength"] / alike["strength"] < 0.95
    with pytest.raises(SkippedError, match="'Smiling' lie is not known"):
        conditions.compare(EditedFaces.of(encoded, seer(), "test"), val, NAMES, MetricNetwork(None, "none"))


def test_kept_predictions_are_balanced_over_sides_and_attributes() -> None:
    before = np.array([[-1, -1, 1], [-1, -1, 1], [-1, -1, 1], [-1, 1, 1]], np.float32)
    after = np.array([[1, -1, 1], [1, -1, 1], [1, -1, 1], [1, -1, 1]], np.float32)
    found = quality(("a", "rare", "always"), "a", 1.0, before, after)
    assert found.kept == pytest.approx(7 / 8)
    assert found.kept_balanced == pytest.approx(1 / 2)  # of the rare one the only face that had it lost it


def test_everything_about_edits_is_measured_and_drawn(encoded: EncodedRun, tmp_path: Path) -> None:
    lpips: MetricNetwork[nn.Module] = MetricNetwork(Contrast(), "contrast")
    found = curves.measure(encoded, seer(), Options(), metric_networks(lpips))
    assert [(edit["attribute"], edit["strength"]) for edit in found["edits"]] == [
        ("Smiling", 1.5),
        ("Smiling", -1.5),
        ("Eyeglasses", 1.5),
        ("Eyeglasses", -1.5),
    ]
    seen = found["distances"]["lpips"]
    assert 0 < seen["edits"]["adding Smiling"] < 1
    assert set(seen["edits"]) == {f"{side} {name}" for side in ("adding", "removing") for name in NAMES[:2]}
    assert seen["different_faces"] > 0
    assert found["distances"]["identity"] == {"skipped": "no weights here"}
    drawn = edit_figures.draw(encoded, found, ["Male"], tmp_path)
    assert len(drawn) == len({figure.file for figure in drawn}) == 8
    for figure in drawn:
        assert (tmp_path / figure.file).stat().st_size > 3000


def test_an_edit_that_no_test_face_needs_has_no_shares(encoded: EncodedRun, tmp_path: Path) -> None:
    labels = encoded.data.index.labels.copy()
    labels[encoded.data.rows("test"), 0] = True
    index = replace(encoded.data.index, labels=labels)
    happy = replace(encoded, data=replace(encoded.data, index=index))
    found = curves.measure(happy, seer(), Options(), metric_networks())
    assert found["edits"][0] == asdict(EditQuality("Smiling", 1.5, 0, None, None))
    assert found["curves"]["attributes"]["Smiling"]["adding"]["mean"]["best"] is None
    assert found["rescoring"]["plain"]["attributes"]["Smiling"]["adding"] is None
    json.dumps(found, allow_nan=False)
    files = {figure.file for figure in edit_figures.draw(happy, found, [], tmp_path)}
    assert "edit_adding_Smiling.png" not in files
    assert "edit_removing_Smiling.png" in files


def test_an_attribute_may_have_any_name(encoded: EncodedRun, tmp_path: Path) -> None:
    names = ("round/square", "price $x_$", NAMES[2])
    data = replace(encoded.data, index=replace(encoded.data.index, attributes=names))
    named = replace(encoded, data=data, directions=replace(encoded.directions, names=names))
    found = curves.measure(named, replace(seer(), attributes=names), Options(), metric_networks())
    for figure in edit_figures.draw(named, found, [], tmp_path):
        assert (tmp_path / figure.file).is_file()


class Contrast(nn.Module):
    """Stands where LPIPS would: the mean absolute difference of two batches."""

    def forward(self, ours: Tensor, truth: Tensor, normalize: bool) -> Tensor:
        assert normalize
        return (ours - truth).abs().mean((1, 2, 3))


def test_without_attributes_or_directions_the_reason_is_given(encoded: EncodedRun) -> None:
    none = replace(
        encoded.directions,
        names=(),
        vectors=np.zeros((0, 3), np.float32),
        positives=(),
        negatives=(),
        kinds=(),
        sides=(),
    )
    with pytest.raises(SkippedError, match="needs directions"):
        curves.measure(replace(encoded, directions=none), seer(), Options(), metric_networks())
    index = replace(encoded.data.index, attributes=(), labels=np.zeros((600, 0), bool))
    plain = replace(encoded, data=replace(encoded.data, index=index))
    with pytest.raises(SkippedError, match="needs attributes"):
        curves.measure(plain, replace(seer(), attributes=()), Options(), metric_networks())
