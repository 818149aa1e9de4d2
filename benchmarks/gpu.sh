#!/usr/bin/env bash
# The whole session on an NVIDIA GPU, in at most eight minutes: plans built, proven and timed beside their rivals, the
# server asked over gRPC, one epoch of training. A step that fails or takes too long leaves its log, and the rest goes on.
#
#   benchmarks/gpu.sh RUN BUNDLE DATA OUT
#
# RUN is a finished training, of which config.json and the safetensors of model, directions, prior and samples are read.
# BUNDLE was made from it, on any machine (build_engines --max-batch 256 --encoder plain --decoder plain). DATA is what to
# train on; a thousand faces are enough. At 64 pixels all of it is some 60 MB with this repository; checkpoint.pt and
# DATA/packed, the largest files, stay behind.
# PYTHON has torch, TENSORRT_PYTHON (if it is another one) TensorRT and what export.retarget and the server need. PRESET
# names the training, VGG the file of VGG19's weights. REHEARSE=1 goes through all of it on a CPU, with ONNX Runtime in the
# place of TensorRT.
set -u
cd "$(dirname "$0")/.." || exit 2
[ $# = 4 ] || { sed -n 's/^# \{0,3\}//; 5p' "$0" >&2; exit 2; }
run=$1 bundle=$2 data=$3 out=$4
torch=${PYTHON:-python3} plans=${TENSORRT_PYTHON:-${PYTHON:-python3}}
[ -e "$out" ] && { echo "error: $out exists already; name a new folder" >&2; exit 2; }
mkdir -p "$out" || exit 2
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
device=cuda seconds=0.3 rivals=() engines=() epoch=()
if [ -n "${REHEARSE:-}" ]; then
  device=cpu seconds=0.01
  rivals=(--device cpu --max-batch 4) engines=(--backend onnxruntime --precision fp32 --max-batch 4) epoch=(--compile off)
fi
[ -n "${VGG:-}" ] && epoch+=(--vgg-weights "$VGG")
failed=0

step() {  # NAME SECONDS COMMAND...
  local name=$1 limit=$2 left=$((480 - SECONDS)) began=$SECONDS code=0
  shift 2
  [ "$left" -lt "$limit" ] && limit=$left
  if [ "$limit" -gt 5 ]; then timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?; else code=124; fi
  [ "$code" = 0 ] || failed=1
  echo "$name: exit code $code after $((SECONDS - began)) s" | tee -a "$out/steps.txt"
}

step rivals 150 "$torch" benchmarks/gpu.py pytorch --run "$run" --json "$out/rivals.json" --seconds $seconds "${rivals[@]}"
[ -f "$out/rivals.json" ] && engines+=(--pytorch "$out/rivals.json")
step engines 210 "$plans" benchmarks/gpu.py run --bundle "$bundle" --out "$out/bundles" --report "$out/engines.md" \
  --seconds $seconds "${engines[@]}"
served=$(ls -d "$out"/bundles/fp* 2>/dev/null | head -1)
step served 60 "$plans" benchmarks/gpu.py serve --bundle "${served:-$out/bundles/fp16}" --json "$out/served.json" \
  --seconds $seconds
step epoch 120 "$torch" -m trainer train --preset "${PRESET:-best}" --data "$data" --out "$out/run" --epochs 1 \
  --device $device "${epoch[@]}"
exit $failed
