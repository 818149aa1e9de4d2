import json
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.faces import write_faces

SCRIPT = [sys.executable, "benchmarks/training.py"]


def test_both_loops_train_in_turns_and_are_measured_alike(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces", 90, seed=1, workers=1)
    command = [*SCRIPT, "--preset", "plain", "--data", str(tmp_path / "faces"), "--seconds", "0.1", "--turns", "1"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "speed.json")], check=False, capture_output=True, text=True
    )
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


def test_bad_input_is_named() -> None:
    done = subprocess.run([*SCRIPT, "--preset", "bset"], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--preset bset" in done.stderr
    assert "Traceback" not in done.stderr
