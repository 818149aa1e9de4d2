# make quickstart   train, export, serve and edit faces, on this machine, in minutes
# make test         lint, types and tests
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= out/quickstart
RUN     = $(VENV)/bin/python
# Python compiles what is imported, when it is; of all packages that is a small part. It keeps that for the next process,
# of which there are many, also where the environment says otherwise, as containers like to.
INSTALL = -m pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE
# The other environments are made beside the large one; only installing this project, which writes its egg-info, is not.
ALONE   = flock "$(VENV)/pyvenv.cfg"

.PHONY: quickstart test lint pytest protos lock
.DELETE_ON_ERROR:

# DATA=DIR your own CelebA folder, VGG=FILE VGG19 weights (default: random ones),
# CROP=0 images that are cropped already,
# EPOCHS=N longer or shorter training, OUT=DIR where everything goes
quickstart: $(VENV)/installed
	$(RUN) -m quickstart --out "$(OUT)" $(if $(DATA),--data "$(DATA)") $(if $(VGG),--vgg "$(VGG)") \
	  $(if $(CROP),--crop $(CROP)) $(if $(EPOCHS),--epochs $(EPOCHS))

test: lint pytest

pytest: $(VENV)/installed $(VENV)/oldest $(VENV)/python3.10 $(VENV)/python3.13
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# Messages of the Open Inference Protocol get a pool of their own: its clients have others of the same names in the same process.
protos: $(VENV)/oldest
	PYTHONPATH="$(VENV)/oldest" $(RUN) -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. protos/dfcvae.proto
	PYTHONPATH="$(VENV)/oldest" $(RUN) -m grpc_tools.protoc -I . --python_out=. --pyi_out=. protos/open_inference.proto
	sed -i 's/_descriptor_pool.Default()/_descriptor_pool.DescriptorPool()/' protos/open_inference_pb2.py

# The oldest gRPC and protobuf that pyproject.toml allows, beside those of the lock.
$(VENV)/oldest: $(VENV)/installed
	rm -rf "$@"
	$(RUN) $(INSTALL) --no-deps --target "$@" \
	  $$(sed -nE 's/^ *"((grpcio|protobuf|googleapis)[a-z-]*)>=([0-9.]+).*/\1==\3/p' pyproject.toml)

# What a server and a client need, for the oldest and the newest Python, where this machine has them.
$(VENV)/python3.%: requirements.lock pyproject.toml | $(VENV)/pyvenv.cfg
	rm -rf "$@"
	for python in python3.$* "$$HOME"/.pyenv/versions/3.$*.*/bin/python; do \
	  "$$python" -m venv "$@" 2>/dev/null && break; done || { rm -rf "$@"; mkdir -p "$@"; }
	[ ! -x "$@/bin/python" ] || \
	  $(ALONE) "$@/bin/python" $(INSTALL) --constraint requirements.lock --editable ".[cpu]" || \
	  { rm -rf "$@"; exit 1; }

# The lock holds for every Python from 3.10 on, and for all that is needed; torch and torchvision are pinned as a pair.
lock: $(VENV)/installed
	$(RUN) -m pip install --quiet uv
	printf 'torch==2.12.1\ntorchvision==0.27.1\n' | $(RUN) -m uv pip compile pyproject.toml --quiet \
	  --extra cpu --extra openvino --extra int8 --extra parquet --extra traces --extra page --extra train --extra align --extra dev --constraint - --universal --python-version 3.10 \
	  --no-annotate --no-emit-index-url --no-emit-find-links --no-header --output-file requirements.lock
	sed -i "1i # Exact versions of everything that make installs (Python 3.10 and newer). Renew with: make lock" requirements.lock

$(VENV)/installed: requirements.lock pyproject.toml | $(VENV)/pyvenv.cfg
	$(RUN) $(INSTALL) --no-deps --requirement requirements.lock
	$(ALONE) $(RUN) $(INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
