"""The table of presets, from run folders that are made up."""

import json
from pathlib import Path
from typing import Any

import pytest
import quality

CURVES = {"served": "mean", "attributes": {}}
FACES = {"strength": 1.5, "flipped": 0.9, "kept": 0.91, "kept_balanced": 0.8, "faces": 77}


def metrics(psnr: float) -> dict[str, Any]:
    best = {"mean": {"best": FACES}, "svm": {"best": None}}
    return {
        "evaluation": {"data": {"name": "celeba", "fingerprint": "0123456789", "images": {"train": 90, "test": 10}}},
        "reconstruction": {
            "psnr_db": psnr,
            "ssim": 0.7,
            "features": {"relative": {"a": 0.1, "b": 0.3}, "network": "VGG19"},
            "identity": {"skipped": "no network"},
        },
        "encoding": {"kl_nats": None, "active_units": 100},
        "generation": {"frechet_vgg19": {"distance": {"reconstructions": 40.0, "fitted": 50.0, "prior": 140.0}}},
        "attribute_prediction": {
            "accuracy_mean": 0.87,
            "balanced_accuracy_mean": 0.7,
            "average_precision_mean": 0.6,
            "accuracy": {"Bald": 0.99},
            "majority": {"Bald": 0.98},
        },
        "classifier": {"accuracy_mean": 0.9},
        "edits": {
            "curves": {"served": "mean", "attributes": {"Smiling": {"adding": best, "removing": best}}},
            "distances": {
                "identity": {"edits": {"adding Smiling": 0.9, "removing Smiling": 0.8}, "different_faces": 0.5}
            },
        },
    }


def write(folder: Path, variant: str | None, psnr: float) -> None:
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics(psnr)))
    if variant is None:
        return
    (folder / "row.json").write_text(json.dumps({"variant": variant}))
    values = {"config": {"epochs": 3}, "resolved": {"images": {"train": 37_540}}}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "metrics.jsonl").write_text('{"step": 10, "images_per_second": 123.4}\n{"step": 12, "val_psnr": 20}\n')


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_of_what_is_there_has_its_rows_in_order_and_means_over_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "best-seed-1", "best --seed 1", 24.0)
    write(tmp_path / "best", "best", 23.0)
    write(tmp_path / "seed", "seed", 20.0)
    write(tmp_path / "pythae-vae", None, 21.0)
    assert quality.main(["--out", str(tmp_path), "--variants", "--json", str(tmp_path / "all.json")]) == 0
    table, notes, attributes = capsys.readouterr().out.strip().split("\n\n")
    heads, _, *lines = map(cells, table.splitlines())
    rows = {line[0]: dict(zip(heads, line, strict=True)) for line in lines}
    assert list(rows) == ["`seed`", "`best`", "`best --seed 1`", "`pythae-vae`", "`best`, 2 seeds"]
    best = rows["`best`"]
    assert (best["PSNR, dB"], best["KL, nats"], best["images"]) == ("23.00", "-", "112,620")
    assert (best["feature error"], best["images/s"], best["epochs"]) == ("0.200", "123", "3")
    assert best["adding Smiling: flips / kept / balanced, %"] == "90.0 / 91.0 / 80.0"
    assert best["adding Eyeglasses: flips / kept / balanced, %"] == "- / - / -"
    assert (best["identity, reconstructions"], best["identity, edits"]) == ("-", "0.850")
    assert rows["`best`, 2 seeds"]["PSNR, dB"] == "23.50 ± 0.71"
    assert rows["`pythae-vae`"]["images/s"] == "-"
    assert "77" in notes
    assert "the judge is right in 90.0%" in notes
    assert cells(attributes.splitlines()[-1])[:3] == ["Bald", "98.0", "99.0"]
    assert set(json.loads((tmp_path / "all.json").read_text())) == {"seed", "best", "best --seed 1", "pythae-vae"}


def test_bad_rows_are_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for variants, said in ((["bestt"], "'bestt': unknown preset"), (["best"], "'best': is not done yet; give --data")):
        assert quality.main(["--out", str(tmp_path), "--variants", *variants]) == 2
        assert said in capsys.readouterr().err
