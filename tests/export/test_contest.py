import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from runs import SEED_FORM, small_vae

from engine.bundle import Manifest
from export.engines import contest
from export.engines.candidate import Candidate
from export.engines.contest import Entry, rank, table
from export.graphs.names import DECODER_FORMS, ENCODER_FORMS
from export.graphs.trace import write_decoder, write_encoder

FAST = Candidate("openvino", "cpu", "bf16", "product", "phases", False)
SLOW = Candidate("onnxruntime", "cpu", "fp32", "plain", "tail", False)


def sized(max_batch: int) -> Manifest:
    """What a contest reads of a manifest."""
    sizes = {"image_size": SEED_FORM.image_size, "latent_dim": SEED_FORM.latent_dim, "max_batch_size": max_batch}
    return cast(Manifest, SimpleNamespace(**sizes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forms")
    model = small_vae()
    for encoder in ENCODER_FORMS:
        write_encoder(model, encoder, folder, "ab")
    for decoder in DECODER_FORMS:
        write_decoder(model, decoder, folder, "ab")
    return folder


def test_the_score_weighs_both_batch_sizes_by_shares() -> None:
    base = Entry(SLOW, {1: 2.0, 32: 40.0})
    assert Entry(FAST, {1: 2.2, 32: 36.0}).score < base.score  # 10 % slower alone, 10 % off the other: 0.99
    assert Entry(FAST, {1: 2.3, 32: 36.0}).score > base.score
    assert Entry(FAST, {1: 2.0}).score == 4.0  # where the largest batch is one image


def test_batches_are_split_only_where_that_is_clearly_faster() -> None:
    whole, split = Entry(FAST, {1: 2.0, 32: 40.0}), replace(FAST, split=True)
    assert Entry(split, {1: 2.0, 32: 38.5}).score > whole.score
    assert Entry(split, {1: 2.0, 32: 38.0}).score < whole.score


def test_all_candidates_are_measured_and_sorted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "TURN_SECONDS", 0.001)
    monkeypatch.setattr(contest, "ROUNDS", 2)
    candidates = [
        Candidate("onnxruntime", "cpu", "fp32", encoder, decoder, False)
        for encoder in ENCODER_FORMS
        for decoder in DECODER_FORMS
    ]
    entries = rank(candidates, folder, sized(3), threads=1, say=print)
    assert {entry.candidate for entry in entries} == set(candidates)
    assert all(list(entry.edit_ms) == [1, 3] and min(entry.edit_ms.values()) > 0 for entry in entries)
    assert [entry.score for entry in entries] == sorted(entry.score for entry in entries)
    assert all(str(entry.candidate) in table(entries) for entry in entries)


def test_both_backends_and_both_ways_to_share_a_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(contest, "TURN_SECONDS", 0.001)
    monkeypatch.setattr(contest, "ROUNDS", 1)
    candidates = [
        SLOW,
        Candidate("openvino", "cpu", "fp32", "plain", "phases", False),
        Candidate("openvino", "cpu", "fp32", "plain", "phases", True),
    ]
    entries = rank(candidates, folder, sized(4), threads=2, say=print)
    assert {entry.candidate for entry in entries} == set(candidates)


def test_what_a_runtime_refuses_to_open_is_out_and_the_others_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contest, "TURN_SECONDS", 0.001)
    monkeypatch.setattr(contest, "ROUNDS", 1)
    nowhere = Candidate("onnxruntime", "cuda:99", "fp32", "plain", "tail", False)
    said: list[str] = []
    entries = rank([nowhere, SLOW], folder, sized(2), threads=1, say=said.append)
    assert [entry.candidate for entry in entries] == [SLOW]
    (reason,) = said
    assert reason.startswith("onnxruntime fp32 on cuda:99 is out: ")
    assert rank([nowhere], folder, sized(2), threads=1, say=said.append) == []


def test_an_entry_survives_json() -> None:
    values = json.loads(json.dumps(Entry(FAST, {1: 0.5, 32: 8.123456}).to_json()))
    assert values == {
        "backend": "openvino",
        "device": "cpu",
        "precision": "bf16",
        "encoder": "product",
        "decoder": "phases",
        "split": False,
        "edit_ms": {"1": 0.5, "32": 8.1235},
    }
