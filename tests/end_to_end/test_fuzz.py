"""A short run of benchmarks/fuzz.py: bad requests, bad connections and bombs, and a server that lives on."""

import subprocess
import sys
from pathlib import Path

from servers import ROOT


def test_bad_input_gets_clean_answers_and_does_no_harm(tiny_bundle: Path, tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "fuzz.py"
    arguments = ["--bundle", tiny_bundle, "--requests", 1000, "--guided", 0, "--findings", tmp_path / "findings"]
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "- 1,000 requests in " in done.stdout
    assert not list(tmp_path.glob("findings/*"))
