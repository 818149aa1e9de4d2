#!/bin/bash
# Makes an environment for each peer: benchmarks/peers/environments.sh FOLDER [PEER...]
# PYTHON is for all but Triton, whose Python backend needs TRITON_PYTHON of 3.10 or 3.12.
set -euo pipefail
folder=${1:?folder for the environments}
shift
peers=${*:-grpcio mosec litserve bentoml ray triton}
engine="onnxruntime openvino numpy pillow pydantic safetensors typing-extensions"
declare -A packages=([grpcio]="grpcio<1.86 protobuf>=6.31.1,<8" [ray]="ray[serve]" [triton]=nvidia-pytriton)
for peer in $peers; do
  python=${PYTHON:-python3}
  [ "$peer" = triton ] && python=${TRITON_PYTHON:-python3.12}
  "$python" -m venv "$folder/$peer"
  # shellcheck disable=SC2086 # a list of packages
  "$folder/$peer/bin/pip" install --quiet ${packages[$peer]:-$peer} $engine
done
