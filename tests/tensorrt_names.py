"""The names of the real Python module of TensorRT, whose libraries come from a GPU's machine and not with its wheel.

The module asks the loader for three libraries and a few functions of theirs. Libraries of the same names, whose
functions do nothing, are enough to read the module's names; nothing can be built or run with them.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
READ = """
import json
import tensorrt_bindings as trt
classes = {name: value for name, value in vars(trt).items() if isinstance(value, type)}
names = {name: [*dir(value), *getattr(value, "__members__", ())] for name, value in classes.items()}
print(json.dumps({"version": trt.__version__, "module": dir(trt), **names}))
"""


def read_names(folder: Path, version: str) -> dict[str, set[str]]:
    """The names of the module `tensorrt_bindings` ("module"), and of each of its classes.

    Args:
        folder: Where those libraries go.
        version: First number of the version of the module that is wanted.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler here")
    source = folder / "nothing.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    for name in LIBRARIES:
        file = f"{name}.so.{version}"
        built = [compiler, "-shared", f"-Wl,-soname,{file}", "-o", str(folder / file), str(source)]
        subprocess.run(built, check=True)
    # In a process of its own: beside the module of TensorRT for RTX, classes of the same names would be doubled.
    done = subprocess.run(
        [sys.executable, "-c", READ],
        env={"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("version").startswith(f"{version}.")
    return {name: set(values) for name, values in found.items()}
