import json
from collections.abc import Callable
from pathlib import Path

import pytest
import training
from scripts import Result, require_refused

from trainer.faces import write_faces


def test_both_loops_train_in_turns_and_are_measured_alike(
    script: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(training.GEMM_SIDES, "cpu", 256)
    write_faces(tmp_path / "faces", 90, seed=1, workers=1)
    short = ("--preset", "plain", "--seconds", 0.1, "--turns", 1)
    done = script("training", *short, "--data", tmp_path / "faces", "--json", tmp_path / "speed.json")
    assert done.returncode == 0, done.stderr
    assert "times as fast" in done.stdout
    found = json.loads((tmp_path / "speed.json").read_text())
    ours, theirs = (found["results"][side] for side in ("ours", "straightforward"))
    assert found["speed_up"] == pytest.approx(ours["images_per_second"] / theirs["images_per_second"])
    # 3 times the 104.8 MFLOP of a pass through encoder and decoder, but for the first layer's gradient.
    assert found["flops_per_image"] == pytest.approx(3 * 104.8e6, rel=0.05)
    for one in (ours, theirs):
        assert one["images_per_second"] > 0
        assert 0 <= one["waiting_share"] < 1
        assert one["flops"] == pytest.approx(one["images_per_second"] * found["flops_per_image"])
        assert one["peak_host_bytes"] > 2**26


def test_bad_input_is_named(script: Callable[..., Result]) -> None:
    require_refused(script("training", "--preset", "bset"), "--preset bset: choose one of")
