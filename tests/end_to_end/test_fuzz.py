"""A short run of benchmarks/fuzz.py: bad requests, bad connections and bombs, and a server that lives on."""

from pathlib import Path

from scripts import benchmark


def test_bad_input_gets_clean_answers_and_does_no_harm(tiny_bundle: Path, tmp_path: Path) -> None:
    done = benchmark("fuzz", "--bundle", tiny_bundle, "--requests", 1000, "--findings", tmp_path / "found")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "- 1,000 requests in " in done.stdout
