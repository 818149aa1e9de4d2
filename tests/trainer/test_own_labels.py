"""`python -m trainer directions`: on a finished run, through the command line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from tiny_model import save_directions

from engine.latents import FITTED, Directions, load_priors
from trainer.__main__ import main
from trainer.config import TrainConfig
from trainer.data import FaceData
from trainer.run_folder import load_config, load_model, occupied, save_config, save_model, sha256_of
from trainer.train_state import TrainState
from trainer.training import train


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run folder to change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def directions(*arguments: object) -> int:
    return main(["directions", *map(str, arguments)])


def load(run: Path) -> Directions:
    return Directions.load(run / "directions.safetensors")


def kind_of(run: Path, name: str) -> str:
    found = load(run)
    return found.kinds[found.names.index(name)]


def write_csv(path: Path, data: FaceData, names: tuple[str, ...], count: int) -> Path:
    """Labels of the first images: `names` stand for Smiling, in turn as it is and inverted."""
    smiling = data.index.labels[:count, data.index.attributes.index("Smiling")]
    rows = [",".join(["file", *names])]
    for file, smiles in zip(data.index.files, smiling, strict=False):
        rows.append(",".join([file, *(str(int(smiles != column % 2)) for column in range(len(names)))]))
    path.write_text("\n".join(rows) + "\n")
    return path


def write_folders(folder: Path, data: FaceData, count: int) -> tuple[Path, Path]:
    """Two folders of the data set's own files: with glasses and without."""
    glasses = data.index.labels[:, data.index.attributes.index("Eyeglasses")]
    sides = folder / "with", folder / "without"
    for side, rows in zip(sides, (np.flatnonzero(glasses), np.flatnonzero(~glasses)), strict=True):
        side.mkdir()
        for row in rows[:count]:
            shutil.copyfile(data.index.path(row), side / Path(data.index.files[row]).name)
    return sides


def test_labels_of_ones_own_go_beside_the_others(
    run: Path, faces: Path, data: FaceData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, prior = load(run), (run / "prior.safetensors").read_bytes()
    csv = write_csv(tmp_path / "own.csv", data, ("Grin", "Smiling"), 150)
    assert directions(run, "--data", faces, "--labels", csv) == 0
    said = capsys.readouterr().out
    assert "added Grin; replaced Smiling; kept " in said
    assert said.endswith(f"next: python -m export.build_engines --run {run} --out BUNDLE\n")
    after = load(run)
    assert after.names == (*before.names, "Grin")
    np.testing.assert_array_equal(after["Male"], before["Male"])
    np.testing.assert_allclose(after["Grin"], -after["Smiling"], atol=1e-4)  # the same labels, inverted
    labelled = data.index.labels[:150, data.index.attributes.index("Smiling")][data.index.splits[:150] == 0]
    assert after.positives[-1] == labelled.sum()
    assert after.negatives[-1] == (~labelled).sum()
    assert (run / "prior.safetensors").read_bytes() == prior


def test_another_kind_replaces_the_directions_of_the_data_and_leaves_ones_own(
    run: Path, faces: Path, data: FaceData, tmp_path: Path
) -> None:
    csv = write_csv(tmp_path / "own.csv", data, ("Grin",), 200)
    assert directions(run, "--data", faces, "--labels", csv) == 0
    before = load(run)
    assert set(before.kinds) == {"mean"}
    assert directions(run, "--data", faces, "--kind", "svm") == 0
    after = load(run)
    assert after.names == before.names
    assert dict(zip(after.names, after.kinds, strict=True)) == {**dict.fromkeys(after.names, "svm"), "Grin": "mean"}
    # Another kind points elsewhere, and is as long: strength 1 is the same distance.
    lengths, lengths_before = (np.linalg.norm(found.vectors, axis=1) for found in (after, before))
    np.testing.assert_allclose(lengths, lengths_before, rtol=1e-4)
    assert not np.allclose(before["Smiling"], after["Smiling"], rtol=0.1)


def test_adjusted_directions_of_ones_own_hold_the_data_sets_attributes_equal(
    run: Path, faces: Path, data: FaceData, tmp_path: Path
) -> None:
    csv = write_csv(tmp_path / "own.csv", data, ("Grin",), 200)  # Grin is Smiling
    assert directions(run, "--data", faces, "--labels", csv) == 0
    plain = load(run)["Grin"]
    assert directions(run, "--data", faces, "--labels", csv, "--kind", "adjusted") == 0
    assert kind_of(run, "Grin") == "adjusted"
    assert kind_of(run, "Male") == "mean"
    assert not np.allclose(load(run)["Grin"], plain, rtol=0.05)


def test_two_folders_give_what_their_labels_would(run: Path, data: FaceData, tmp_path: Path) -> None:
    having, lacking = write_folders(tmp_path, data, 30)
    assert directions(run, "--with", having, "--without", lacking, "--name", "Specs") == 0
    found = load(run)
    assert (found.names[-1], found.kinds[-1], found.positives[-1], found.negatives[-1]) == ("Specs", "mean", 30, 30)
    specs, glasses = found["Specs"], found["Eyeglasses"]
    assert specs @ glasses / np.linalg.norm(specs) / np.linalg.norm(glasses) > 0.5
    assert directions(run, "--drop", "Specs") == 0
    assert "Specs" not in load(run).names
    np.testing.assert_array_equal(load(run)["Eyeglasses"], glasses)


def test_a_run_of_before_gets_what_it_lacks(run: Path, faces: Path, data: FaceData) -> None:
    expected = load_priors(run / "prior.safetensors")[FITTED].draw(4, 0)
    samples = load_file(run / "samples.safetensors")["images"]
    for name in ("prior", "directions", "samples"):
        (run / f"{name}.safetensors").unlink()
    assert directions(run, "--data", faces) == 0
    drawn = load_priors(run / "prior.safetensors")[FITTED].draw(4, 0)
    np.testing.assert_allclose(drawn, expected, atol=1e-5)
    np.testing.assert_array_equal(load_file(run / "samples.safetensors")["images"], samples)
    assert "Smiling" in load(run).names


def test_the_prior_stays_that_of_the_runs_own_data(
    run: Path, data: FaceData, broken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prior = (run / "prior.safetensors").read_bytes()
    image = np.asarray(Image.open(broken / "img_align_celeba" / data.index.files[0]))
    Image.fromarray(255 - image).save(broken / "img_align_celeba" / data.index.files[0])
    assert directions(run, "--data", broken) == 0
    assert (run / "prior.safetensors").read_bytes() == prior


def test_resuming_a_finished_run_makes_what_is_missing_or_of_another_kind(
    run: Path, data: FaceData, small: TrainConfig
) -> None:
    config = replace(small, epochs=1)
    weights, before = (run / "model.safetensors").read_bytes(), load(run)
    train(replace(config, directions="svm"), data, run, resume=True)
    assert set(load(run).kinds) == {"svm"}
    assert json.loads((run / "config.json").read_text())["config"]["directions"] == "svm"
    (run / "prior.safetensors").unlink()
    train(replace(config, directions="svm"), data, run, resume=True)
    assert load_priors(run / "prior.safetensors")[FITTED].latent_dim == before.latent_dim
    (run / "directions.safetensors").unlink()
    train(config, data, run, resume=True)
    np.testing.assert_allclose(load(run).vectors, before.vectors, atol=1e-5)
    assert (run / "model.safetensors").read_bytes() == weights
    card = (run / "README.md").read_text()
    (run / "README.md").unlink()
    train(config, data, run, resume=True)
    assert (run / "README.md").read_text() == card


def test_a_run_of_before_latents_were_standardised_keeps_its_directions(
    run: Path, data: FaceData, small: TrainConfig
) -> None:
    raw = load_model(run)
    raw.shift_and_scale_latents(torch.full((16,), 1.0).double(), torch.full((16,), 2.0).double())
    save_model(run, raw)
    weights = sha256_of(run / "model.safetensors")
    before = replace(load(run), model_sha256=weights)
    save_directions(before, run / "directions.safetensors")
    (run / "prior.safetensors").unlink()
    train(replace(small, epochs=1), data, run, resume=True)
    assert sha256_of(run / "model.safetensors") == weights
    np.testing.assert_array_equal(load(run).vectors, before.vectors)
    assert load_priors(run / "prior.safetensors")[FITTED].mean.mean() < -0.4  # of the latents as they are


def test_an_unfinished_run_is_finished_by_directions_of_its_data(
    run: Path, data: FaceData, small: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = load_model(run).state_dict()
    stopped = TrainState(replace(small, epochs=1), data, run)
    stopped.restore()
    stopped.save()  # as training leaves the folder before its end
    having, lacking = write_folders(tmp_path, data, 30)
    assert directions(run, "--with", having, "--without", lacking, "--name", "Specs") == 2
    assert "has no directions of its weights yet" in capsys.readouterr().err
    for name in ("prior", "directions"):
        (run / f"{name}.safetensors").unlink()
    assert directions(run, "--data", data.index.root) == 0
    found = load_model(run).state_dict()
    assert all(torch.equal(found[name], values) for name, values in finished.items())


def test_directions_of_other_weights_are_not_kept(run: Path, faces: Path, data: FaceData, tmp_path: Path) -> None:
    csv = write_csv(tmp_path / "own.csv", data, ("Grin",), 200)
    assert directions(run, "--data", faces, "--labels", csv) == 0
    found = load(run)
    save_directions(replace(found, model_sha256="ab" * 32), run / "directions.safetensors")
    assert directions(run, "--data", faces) == 0
    assert load(run).names == found.names[:-1]


def test_other_data_than_the_run_s_are_taken_by_their_own_labels(
    run: Path, faces: Path, data: FaceData, tmp_path: Path
) -> None:
    csv = write_csv(tmp_path / "own.csv", data, ("Grin",), len(data.index.files))
    config = json.loads((run / "config.json").read_text())
    config["config"]["labels"] = str(csv)  # as if it had been trained with them
    (run / "config.json").write_text(json.dumps(config))
    other = Path(shutil.copytree(faces, tmp_path / "other", ignore=shutil.ignore_patterns("packed")))
    first, second = data.index.path(0), other / "img_align_celeba" / data.index.files[1]
    shutil.copyfile(first, second)  # other pictures of the same names
    before = load(run)
    assert directions(run, "--data", other, "--kind", "svm") == 0
    assert load(run).names == before.names
    assert kind_of(run, "Smiling") == "svm"
    config["config"] |= {"labels": None, "limit_train": 161}  # more than the other data's 160
    (run / "config.json").write_text(json.dumps(config))
    assert directions(run, "--data", other) == 0
    assert kind_of(run, "Smiling") == "mean"


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing": ((), "give --data DIR, perhaps with --labels CSV, or --with A --without B --name NAME"),
    "one folder": (("--with", "A", "--name", "Specs"), "--with A --without B --name NAME: give all three"),
    "both ways": (("--data", "DATA", "--with", "A", "--without", "B", "--name", "x"), "give one or the other"),
    "a name and a blank": (
        ("--with", "A", "--without", "B", "--name", "a "),
        "--name 'a ': must have no blanks at its",
    ),
    "one folder twice": (("--with", "A", "--without", "A", "--name", "x"), "one holds the other; give two folders"),
    "folders, adjusted": (
        ("--with", "A", "--without", "B", "--name", "x", "--kind", "adjusted"),
        "--kind adjusted: holds other attributes equal, and folders say nothing of them",
    ),
    "few images": (
        ("--with", "A", "--without", "B", "--name", "x"),
        "with: holds 5 images; a direction needs 20 on either side",
    ),
    "few labels": (("--data", "DATA", "--labels", "FEW"), "no attribute has 20 images of the train split with it"),
    "no header": (("--data", "DATA", "--labels", "BARE"), "line 1: '000001.jpg' is an image where the header is"),
    "no labels": (("--data", "DATA", "--labels", "NONE"), "does not exist"),
    "unknown": (("--drop", "Grin"), "has no such directions; it has Bald"),
    "drop and more": (("--drop", "Bald", "--data", "DATA"), "--drop: stands alone"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_changes_nothing(
    run: Path, data: FaceData, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    flags, message = BAD[case]
    having, lacking = write_folders(tmp_path, data, 5)
    few = write_csv(tmp_path / "few.csv", data, ("Grin",), 25)
    bare = tmp_path / "bare.csv"
    bare.write_text("".join(few.read_text().splitlines(keepends=True)[1:]))
    own = {"FEW": few, "BARE": bare, "NONE": tmp_path / "none.csv"}
    places = {"A": having, "B": lacking, "DATA": data.index.root, **own}
    files = {path.name: path.read_bytes() for path in run.iterdir() if path.name != ".lock"}
    assert directions(run, *(places.get(flag, flag) for flag in flags)) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("error: ")
    assert message in said
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name != ".lock"} == files


def test_a_run_that_trains_on_is_refused_before_its_weights_are_read(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with occupied(run, 0):
        for source in (("--data", "nowhere"), ("--with", "nowhere", "--without", "elsewhere", "--name", "x")):
            assert directions(run, *source) == 2
            assert "is in use: another process works there" in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path: Path, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert directions(tmp_path / "none", "--data", faces) == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_run_on_few_images_gets_its_directions_and_prior_from_those(
    small: TrainConfig, data: FaceData, faces: Path, tmp_path: Path
) -> None:
    limited = replace(data, index=data.index.limited(100))
    train(replace(small, limit_train=100), limited, tmp_path / "run")
    files = [tmp_path / "run" / name for name in ("directions.safetensors", "prior.safetensors")]
    expected = [load_file(file) for file in files]
    for file in files:
        file.unlink()
    assert directions(tmp_path / "run", "--data", faces) == 0
    for file, before in zip(files, expected, strict=True):
        assert {name: values.tolist() for name, values in load_file(file).items()} == {
            name: values.tolist() for name, values in before.items()
        }


def test_damaged_images_of_folders_are_no_black_faces(
    run: Path, data: FaceData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config, resolved = load_config(run)
    save_config(run, replace(config, skip_damaged=2), resolved)
    having, lacking = write_folders(tmp_path, data, 25)
    assert directions(run, "--with", having, "--without", lacking, "--name", "Specs") == 0
    clean = load(run)["Specs"]
    (having / "damaged.jpg").touch()
    assert directions(run, "--with", having, "--without", lacking, "--name", "Specs") == 0
    np.testing.assert_array_equal(load(run)["Specs"], clean)
    assert "Specs (mean): 25 images with it, 25 without" in caplog.messages[-1]
    for path in sorted(having.iterdir())[:6]:
        path.unlink()
    assert directions(run, "--with", having, "--without", lacking, "--name", "Specs") == 2
