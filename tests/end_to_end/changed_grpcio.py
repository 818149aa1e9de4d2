"""The real server on a grpcio whose core takes other arguments: `changed_grpcio.py NAME --bundle ...`."""

import runpy
import sys
from typing import Any

from grpc._cython import cygrpc


def changed(*, mode: int) -> Any:
    """What nobody calls as this is to be called."""
    raise AssertionError(mode)


name = sys.argv.pop(1)
setattr(cygrpc, name, changed)
runpy.run_module("engine", run_name="__main__", alter_sys=True)
