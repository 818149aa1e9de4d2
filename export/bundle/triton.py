"""A model repository for NVIDIA's Triton Inference Server, for those who outgrow one server.

| model        | inputs             | outputs       | what runs                                                   |
|--------------|--------------------|---------------|-------------------------------------------------------------|
| `encoder`    | `images`           | `mu, log_var` | the bundle's engine                                         |
| `decoder`    | `latents`          | `images`      | the bundle's engine                                         |
| `edit`       | `images, strengths`| `edited`      | both as one graph; not for plans, which are built one by one|
| `arithmetic` | `mu, strengths`    | `latents`     | mu + strengths @ directions, a tiny graph                   |
| `ensemble`   | `images, strengths`| `edited`      | encoder, arithmetic and decoder, each batched by itself     |

Every name begins with the repository's own, `dfcvae_`. Per image, `strengths` has one value per attribute, in the
order that the parameter `attributes` of the configuration gives.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from engine.backends import CUDA
from engine.bundle import ENCODER, Bundle
from export.bundle.output import check_free, publish, require_space, staging
from export.graphs.edit import write_edit, write_move

NAME = "dfcvae"
"""What the names of all models begin with."""
FLAG = "--triton"
CONFIG, VERSION, PLAN = "config.pbtxt", "1", ".plan"
ON_CPU, ON_GPU = "KIND_CPU", "KIND_GPU"

SIGNATURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "encoder": (("images",), ("mu", "log_var")),
    "decoder": (("latents",), ("images",)),
    "edit": (("images", "strengths"), ("edited",)),
    "arithmetic": (("mu", "strengths"), ("latents",)),
    "ensemble": (("images", "strengths"), ("edited",)),
}
"""Names of the inputs and outputs of each model."""

_ENSEMBLE = f"""\
platform: "ensemble"
ensemble_scheduling {{
  step {{
    model_name: "{NAME}_encoder"
    model_version: -1
    input_map {{ key: "images" value: "images" }}
    output_map {{ key: "mu" value: "mu" }}
  }}
  step {{
    model_name: "{NAME}_arithmetic"
    model_version: -1
    input_map {{ key: "mu" value: "mu" }}
    input_map {{ key: "strengths" value: "strengths" }}
    output_map {{ key: "latents" value: "latents" }}
  }}
  step {{
    model_name: "{NAME}_decoder"
    model_version: -1
    input_map {{ key: "latents" value: "latents" }}
    output_map {{ key: "images" value: "edited" }}
  }}
}}
"""


_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
"""Older names of Triton's backends, where they have any."""


class Runtime(NamedTuple):
    """Who runs a model's file, and where."""

    backend: str  # Triton's name of it
    kind: str  # where its instances are
    parameters: dict[str, str]  # settings of the backend

    @property
    def file(self) -> str:
        """Name of the model's file."""
        return "model.plan" if self.backend == "tensorrt" else "model.onnx"


def write_triton(bundle: Bundle, folder: Path) -> None:
    """Writes the model repository of a verified bundle to a new folder, whole or not at all.

    Without attributes, there are only `encoder` and `decoder`.

    Raises:
        InputError: something is at `folder`, it cannot be written to, or its disk is too full.
    """
    check_free(folder, FLAG)
    engine = bundle.manifest.engine
    files = {"encoder": bundle.path / engine.encoder, "decoder": bundle.path / engine.decoder}
    require_space(folder, 3 * sum(path.stat().st_size for path in files.values()))
    with staging(folder, FLAG) as place:
        for model, file in files.items():
            runtime = _runtime(bundle, file)
            shutil.copyfile(file, _add(place, model, bundle, runtime))
        if bundle.directions.names:
            _add_edits(place, bundle, files["encoder"], files["decoder"])
        publish(place, folder, force=False, flag=FLAG)


def _add_edits(place: Path, bundle: Bundle, encoder: Path, decoder: Path) -> None:
    if PLAN not in (encoder.suffix, decoder.suffix):
        target = _add(place, "edit", bundle, _runtime(bundle, encoder))
        write_edit(encoder, decoder, bundle.directions, target)
    on_gpu = _runtime(bundle, encoder).kind
    target = _add(place, "arithmetic", bundle, Runtime("onnxruntime", on_gpu, {}))
    write_move(bundle.path / ENCODER, bundle.directions, target)
    _add(place, "ensemble", bundle, None)


def _add(place: Path, model: str, bundle: Bundle, runtime: Runtime | None) -> Path:
    """Writes a model's configuration; returns where its file goes."""
    folder = place / f"{NAME}_{model}"
    (folder / VERSION).mkdir(parents=True)  # of an ensemble too: Triton asks for it
    (folder / CONFIG).write_text(_config(model, bundle, runtime), encoding="ascii")
    return folder / VERSION / (runtime.file if runtime else "")


def _runtime(bundle: Bundle, file: Path) -> Runtime:
    """What runs an encoder's or decoder's file as the bundle's own backend does."""
    backend, precision = bundle.manifest.backend, bundle.manifest.precision
    if file.suffix == PLAN:
        return Runtime("tensorrt", ON_GPU, {})
    # On a CPU with units for bf16 OpenVINO takes them unless told not to, and Triton's backend has no way to tell it:
    # a bundle in fp32 keeps its accuracy with ONNX Runtime.
    if backend == "openvino" and precision != "fp32":
        parameters = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        if precision == "bf16":
            parameters["HINT_BF16"] = "YES"
        return Runtime("openvino", ON_CPU, parameters)
    return Runtime("onnxruntime", ON_GPU if bundle.manifest.device == CUDA else ON_CPU, {})


def _config(model: str, bundle: Bundle, runtime: Runtime | None) -> str:
    """The configuration of one model, a ModelConfig of Triton as text; without a runtime, of the ensemble."""
    largest, (inputs, outputs) = bundle.manifest.max_batch_size, SIGNATURES[model]
    lines = [f'name: "{NAME}_{model}"', f"max_batch_size: {largest}"]
    lines += [f'input {{ name: "{name}" {_tensor(name, bundle)} }}' for name in inputs]
    lines += [f'output {{ name: "{name}" {_tensor(name, bundle)} }}' for name in outputs]
    parameters = {"attributes": ",".join(bundle.directions.names)} if "strengths" in inputs else {}
    if runtime is None:
        lines.append(_ENSEMBLE)
    else:
        parameters |= runtime.parameters
        zeros = [f'inputs {{ key: "{name}" value {{ {_tensor(name, bundle)} zero_data: true }} }}' for name in inputs]
        lines += [
            f'platform: "{_PLATFORMS.get(runtime.backend, "")}"',
            f'backend: "{runtime.backend}"',
            f'default_model_filename: "{runtime.file}"',
            f"instance_group {{ count: 1 kind: {runtime.kind} }}",
            # What waits is taken at once, at most a full batch: an idle engine makes nobody wait.
            f"dynamic_batching {{ preferred_batch_size: {largest} max_queue_delay_microseconds: 0 }}",
        ]
        for size in sorted({1, largest}):
            lines.append(f'model_warmup {{ name: "batch of {size}" batch_size: {size} {" ".join(zeros)} }}')
    # JSON's quoted ASCII is the text format's, too.
    lines += [
        f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(text)} }} }}'
        for key, text in parameters.items()
    ]
    return "\n".join(lines) + "\n"


def _tensor(name: str, bundle: Bundle) -> str:
    """Type and shape, without the batch."""
    size = bundle.manifest.image_size
    if name in ("images", "edited"):
        return f"data_type: TYPE_UINT8 dims: [{size}, {size}, 3]"
    width = len(bundle.directions.names) if name == "strengths" else bundle.manifest.latent_dim
    return f"data_type: TYPE_FP32 dims: [{width}]"
