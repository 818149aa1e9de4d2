"""Where DNS and all else outside the machine is silently dropped, everything works, and nothing asks for it."""

import json
from pathlib import Path

import numpy as np
import pytest
from bundles import write_tiny_bundle
from mute_network import Observed, run_on_mute_network
from PIL import Image
from runs import write_run
from tiny_model import ATTRIBUTES

# The fork that OpenVINO makes where its reports are on is ended after three seconds; a server that took this for its
# own end, or an orphan that still holds its port, shows after that.
_SERVE = """
import signal, subprocess, sys, time
from engine.client import Client
command = [sys.executable, "-m", "engine", "--bundle", sys.argv[1], "--port", "0", "--insecure", "--host", "0.0.0.0"]
command += ["--metrics-host", "0.0.0.0", "--metrics-port", "0"]
server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
port = server.stdout.readline().split(":")[-1].strip()
time.sleep(5)
with Client(f"localhost:{port}") as client:
    assert client.edit([open(sys.argv[2], "rb").read()], {"%s": 1.0}).shape[0] == 1
server.send_signal(signal.SIGTERM)
sys.exit(server.wait())
"""
# In one process, as what it imports takes longer than what it does.
_BUILD_AND_SERVE = """
import json, sys
from pathlib import Path
from export import build_engines
from quickstart.__main__ import Stages, serve_and_edit
for flags in json.loads(sys.argv[1]):
    if code := build_engines.main(flags):
        sys.exit(code)
serve_and_edit(*map(Path, sys.argv[2:5]), Stages())
"""


def require_silence(observed: Observed) -> None:
    assert observed.ended.returncode == 0, observed.ended.stderr
    assert observed.events == ""
    assert observed.questions == b""
    assert observed.home == []


@pytest.fixture
def face(tmp_path: Path) -> Path:
    path = tmp_path / "face.png"
    Image.fromarray(np.full((12, 12, 3), 90, np.uint8)).save(path)
    return path


def bundle_for(backend: str, folder: Path) -> Path:
    bundle = write_tiny_bundle(folder / backend)
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"onnxruntime"', f'"{backend}"'))
    return bundle


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_server_serves_until_it_is_told_to_end(tmp_path: Path, face: Path, backend: str) -> None:
    bundle = bundle_for(backend, tmp_path)
    require_silence(run_on_mute_network(["-c", _SERVE % ATTRIBUTES[0], bundle, face], tmp_path))


def build_flags(run: Path, bundle: Path, precision: str) -> list[str]:
    flags = ["--run", str(run), "--out", str(bundle), "--max-batch", "4", "--precision", precision]
    return [*flags, "--backend", "openvino", "--encoder", "plain", "--decoder", "plain"]


def test_export_proves_and_quantises_and_the_quickstart_serves(tmp_path: Path, face: Path) -> None:
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    # Weights that were never trained round badly, and CPUs differ in how they add int8.
    least = {"latent": "9", "level": "255", "mean": "255", "bias": "255", "logit": "9"}
    wide = [part for name, value in least.items() for part in (f"--{name}-tolerance", value)]
    builds = [build_flags(run, out / "fp32", "fp32"), [*build_flags(run, out / "int8", "int8"), *wide]]
    builds[1] += ["--min-psnr", "1"]
    bundle, order = bundle_for("openvino", tmp_path), tmp_path / "order.json"
    order.write_text(json.dumps([{"attribute": ATTRIBUTES[0], "strength": 1.0, "files": [str(face)]}]))
    command = ["-c", _BUILD_AND_SERVE, json.dumps(builds), bundle, order, tmp_path / "edits.npz"]
    require_silence(run_on_mute_network(command, tmp_path))
    assert sorted(path.name for path in out.iterdir()) == ["fp32", "int8"]
    assert (tmp_path / "edits.npz").exists()
