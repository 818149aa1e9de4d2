"""Makes what the benchmark scripts share importable, as it is for them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
