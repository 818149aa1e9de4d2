import base64
import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from trainer.evaluation.charts import save_training_curves
from trainer.evaluation.figures import training_curves
from trainer.evaluation.grids import Figure
from trainer.evaluation.report import attribute_table, embed, headlines, new_faces_table, page, summary

SKIPPED = {"skipped": "needs trained weights; give a file of them with --some-weights"}
METRICS: dict[str, Any] = {
    "evaluation": {
        "date": "2026-01-02",
        "seconds": 3.5,
        "device": "cpu",
        "data": {
            "name": "celeba",
            "fingerprint": "0123456789abcdef",
            "runs_own": False,
            "images": {"train": 9000, "val": 500, "test": 1500},
        },
        "seed": 0,
    },
    "reconstruction": {
        "split": "test",
        "images": 1500,
        "psnr_db": 21.234,
        "psnr_db_quantiles": {"p5": 18.0, "median": 21.0, "p95": 24.0},
        "ssim": 0.6543,
        "lpips": SKIPPED,
        "identity": SKIPPED,
        "features": {"relative": {"relu1_1": 0.25}, "network": "VGG19 from a file"},
    },
    "generation": {
        "split": "test",
        "fid": SKIPPED,
        "recognition": SKIPPED,
        "frechet_vgg19": {
            "distance": {"prior": 168.2, "fitted": 70.4, "mixture": 65.3, "reconstructions": 60.1, "train": 1.06},
            "precision": {"mixture": 0.52},
            "recall": {"mixture": 0.31},
            "images": {"test": 1500, "prior": 1400},
            "network": "VGG19 at relu3_1",
        },
    },
    "encoding": {"kl_nats": 163.5, "active_units": 120, "latent_dim": 128, "ks_mean": 0.109},
    "attribute_prediction": {
        "accuracy_mean": 0.8565,
        "majority_mean": 0.801,
        "balanced_accuracy_mean": 0.7,
        "average_precision_mean": None,
        "accuracy": {"Wearing_Hat": 0.9, "Bald": 0.8},
        "balanced_accuracy": {"Wearing_Hat": 0.7, "Bald": None},
        "average_precision": {"Wearing_Hat": 0.65, "Bald": None},
        "majority": {"Wearing_Hat": 0.6, "Bald": 1.0},
        "left_out": ["Eyeglasses"],
    },
    "classifier": SKIPPED,
    "edits": {
        "strength": 1.5,
        "edits": [
            {"attribute": "Bald", "strength": 1.5, "faces": 300, "flipped": 0.912, "kept": 0.934, "kept_balanced": 0.8},
            {"attribute": "Bald", "strength": -1.5, "faces": 0, "flipped": None, "kept": None, "kept_balanced": None},
        ],
        "rescoring": {
            "edited": ["Bald"],
            "plain": {
                "target": 2.25,
                "others": 0.4,
                "attributes": {"Bald": {"adding": {"flipped": 0.5, "kept": 0.9}, "removing": None}},
            },
            "keep": {"target": 2.0, "others": 0.3},
        },
        "curves": {
            "served": "mean",
            "kept_share": 0.9,
            "attributes": {
                "Bald": {
                    "adding": {
                        "mean": {"best": {"strength": 1.8, "flipped": 0.95, "kept": 0.9, "faces": 200}},
                        "svm": {"best": None},
                    },
                    "removing": {"mean": {"best": None}},
                }
            },
        },
        "conditions": {
            "edits": {
                "adding Bald": {
                    "conditional": {"strength": 0.8, "flipped": 0.99, "kept": 0.95, "identity": 0.977},
                    "alike": {"strength": 1.4, "flipped": 0.98, "kept": 0.92, "identity": None},
                }
            }
        },
        "distances": {"lpips": {"edits": {"adding Bald": 0.123}, "different_faces": 0.5}, "identity": SKIPPED},
    },
}


@pytest.fixture
def pictures(tmp_path: Path) -> "list[tuple[Figure, str]]":
    Image.fromarray(np.full((20, 30, 3), 77, np.uint8)).save(tmp_path / "a.png")
    return embed([Figure("a.png", "A figure", "Whether it is grey.")], tmp_path)


def test_numbers_stand_in_the_report_and_on_the_screen(pictures: "list[tuple[Figure, str]]") -> None:
    html = page("run", METRICS, pictures, {"preset": "best", "model": {"channels": [1, 2]}})
    for text in (html, summary(METRICS)):
        for number in (
            "21.23 dB",
            "0.654",
            "163.5 nats",
            "120 of 128",
            "85.65%",
            "91.2% flipped",
            "each 99.0%, 95.0% kept, strength +0.8, identity 0.977; all alike 98.0%, 92.0% kept, strength +1.4",
            "average precision unknown",
        ):
            assert number in text
    for text in ("Wearing Hat", "90.0%", "model.channels", "1, 2", "2026-01-02", "Eyeglasses", "Whether it is grey."):
        assert text in html
    for text in ("celeba", "01234567", "500 val", "not the one that the run was trained on"):
        assert text in html
    assert "65.3 drawn from the mixture, 70.4 drawn from the Gaussian, 168 drawn from N(0, I)" in summary(METRICS)
    assert re.search(r"As far as needed: [\w ]+: +each 99.0%", summary(METRICS))
    assert html.index("Bald added 91%") < html.index("Bald added</th>") < html.index("PSNR")


def test_edits_stand_above_the_numbers_and_what_was_not_measured_is_folded(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 30, 3), 77, np.uint8)).save(tmp_path / "a.png")
    figures = [Figure("a.png", "Rest", "Below."), Figure("a.png", "Smiles", "Above.", "edits")]
    html = page("run", METRICS, embed(figures, tmp_path), {})
    order = ("Bald added 91%", "Above.", "PSNR", "<summary>Not measured: ", "skipped: needs", "Below.")
    assert sorted(order, key=html.index) == list(order)


def test_on_a_phone_figures_with_words_at_their_rows_keep_a_width_that_can_be_read(tmp_path: Path) -> None:
    Image.new("L", (2, 2), 128).save(tmp_path / "a.png")
    figures = [
        Figure("a.png", "Faces", "Above.", "edits"),
        Figure("a.png", "Walks", "Above.", "edits", names_rows=True),
        Figure("a.png", "Rest", "Below."),
    ]
    text = page("faces", METRICS, embed(figures, tmp_path), {})
    assert re.findall(r'<div( class="wide")?><img [^>]*alt="(\w+)"', text) == [
        ("", "Faces"),
        (' class="wide"', "Walks"),
        (' class="wide"', "Rest"),
    ]


def test_new_faces_stand_beside_published_ones() -> None:
    columns, rows = new_faces_table(METRICS["generation"])
    cells = {row.name: dict(zip(columns, row.cells, strict=True)) for row in rows}
    assert cells["drawn from the mixture"] == {
        "FID": "–",
        "Fréchet distance on VGG19": "65.3",
        "as real, on VGG19": "52%",
        "as varied, on VGG19": "31%",
    }
    assert cells["published: RAE"]["FID"] == "40.95"
    assert [row.name for row in rows][-3:] == [f"published: {name}" for name in ("RAE", "BIVA", "joint latent EBM")]
    measured = {"distance": {"mixture": 51.26}, "inception_score": {"mixture": {"mean": 1.983, "deviation": 0.02}}}
    columns, rows = new_faces_table({**METRICS["generation"], "fid": measured})
    assert rows[0].cells[0] == "51.3"
    assert rows[0].cells[columns.index("Inception score")] == "1.98 ± 0.02"
    html = page("run", METRICS, [], {})
    assert "--inception-weights FILE --samples 50000 --reference train" in html
    assert "1,500 real: test images, 1,400 drawn from N(0, I); VGG19 at relu3_1" in html


def test_the_training_is_drawn_from_its_log(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    losses = [{"step": step, "loss": {"total": 1 / step}} for step in (10, 20, 30)]
    records = [*losses, {"step": 30, "val_psnr": 21.0, "val_loss": 0.04}]
    log.write_text("".join(f"{json.dumps(record)}\n" for record in records) + '{"step": 40, "lo')
    (figure,) = training_curves(log, tmp_path)
    assert Image.open(tmp_path / figure.file).width > 500
    log.write_text('{"step": 10, "images_per_second": 7}\n')
    assert training_curves(log, tmp_path) == training_curves(tmp_path / "absent", tmp_path) == []


@pytest.mark.parametrize("losses", [(0.5, 0.004), (0.09, 0.03)])  # over decades, and within one
def test_numbers_beside_a_curve_are_numbers(tmp_path: Path, losses: tuple[float, float]) -> None:
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        save_training_curves(tmp_path / "curves.svg", list(enumerate(losses)), [], [])
    said = re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "curves.svg").read_text())
    assert "loss" in said
    assert not [text for text in said if "$" in text]
    assert any(0.003 < float(text) < 0.6 for text in said if re.fullmatch(r"[\d.e-]+", text))


def test_what_several_have_in_common_is_said_once(pictures: "list[tuple[Figure, str]]") -> None:
    (figure, source), *_ = pictures
    html = page("run", METRICS, [(figure, source)] * 3, {})
    assert html.count(source) == 3
    assert html.count(figure.look_for) == 1


def test_what_was_skipped_says_why_and_how_to_mend_it(pictures: "list[tuple[Figure, str]]") -> None:
    html = page("run", METRICS, pictures, {})
    assert {line.name for line in headlines(METRICS) if not line.known} == {
        "LPIPS",
        "Image classifier",
        "Same person",
        "Same person after edits",
    }
    assert html.count("skipped: needs trained weights; give a file of them with --some-weights") == 6


def test_figures_are_inside_the_file(pictures: "list[tuple[Figure, str]]") -> None:
    html = page("run", METRICS, pictures, {})
    (address,) = re.findall(r'<img src="data:image/webp;base64,([^"]+)"', html)
    assert base64.b64decode(address)[8:12] == b"WEBP"
    assert "http" not in html.replace("http-equiv", "")


def test_values_are_escaped(pictures: "list[tuple[Figure, str]]") -> None:
    html = page("<script>alert(1)</script>", METRICS, pictures, {"data": "/home/<b>&"})
    assert "<script>" not in html
    assert "/home/&lt;b&gt;&amp;" in html


def test_an_attribute_that_something_does_not_know_has_an_empty_cell() -> None:
    rows = {row.name: row.cells for row in attribute_table(METRICS)[1]}
    assert rows["Wearing Hat"] == ("90.0%", "70.0%", "65.0%", "60.0%", "", "", "", "")
    assert rows["Bald"] == ("80.0%", "", "", "100.0%", "", "", "50.0%", "90.0%")


def test_an_edit_without_faces_says_so() -> None:
    values = {line.name: line.value for line in headlines(METRICS)}
    assert values["Bald added"] == "91.2% flipped, 93.4% kept (80.0% balanced)"
    assert values["Bald removed"] == "no faces to judge"
    assert values["Best: adding Bald"] == "mean 95.0%, 90.0% kept (+1.8, 200 faces)"
    assert values["Best: removing Bald"] == "no faces to judge"
    assert values["LPIPS of edits"] == "adding Bald 0.123; different faces 0.500"
    assert values["Side effects of edits"] == "2.25 sigma wanted, 0.40 elsewhere"
