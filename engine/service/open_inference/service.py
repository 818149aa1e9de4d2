"""The service of the Open Inference Protocol.

What it is asked, LatentEngine answers: so admission, limits, rates, queues and errors are the same.
"""
# ruff: noqa: N802 - methods go by the names of their RPCs

import math
from collections.abc import Sequence

from google.protobuf.descriptor import ServiceDescriptor

from engine.errors import InvalidRequest, Overloaded, UnknownAttribute, UnknownModel
from engine.models.model import Model
from engine.models.repository import ModelRepository
from engine.service.latent_engine import LatentEngine
from engine.service.open_inference.models import MODELS, Function, output_of, tensor_of, tensors
from engine.service.open_inference.tensors import MAX_TYPED, Tensor, read_given, refuse_extensions, write
from engine.service.request_scope import Call
from engine.version import NAME, version_here
from protos import open_inference_pb2 as pb

SERVICE: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]


class OpenInference:
    """Answers the protocol's requests through LatentEngine."""

    def __init__(self, repository: ModelRepository, engine: LatentEngine) -> None:
        self._repository = repository
        self._engine = engine

    async def ServerLive(self, request: pb.ServerLiveRequest, call: Call) -> pb.ServerLiveResponse:
        """True: a server that is not live gives no answer."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, call: Call) -> pb.ServerReadyResponse:
        """Admission refuses all calls until the models are warm."""
        return pb.ServerReadyResponse(ready=True)

    async def ModelReady(self, request: pb.ModelReadyRequest, call: Call) -> pb.ModelReadyResponse:
        """Every model that is served is ready."""
        self._find(request.name, request.version)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, call: Call) -> pb.ServerMetadataResponse:
        """The software."""
        return pb.ServerMetadataResponse(name=NAME, version=version_here())

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, call: Call) -> pb.ModelMetadataResponse:
        """A model's tensors."""
        function, model, known = self._find(request.name, request.version)
        manifest = model.bundle.manifest

        def tell(names: Sequence[str]) -> list[pb.ModelMetadataResponse.TensorMetadata]:
            make = pb.ModelMetadataResponse.TensorMetadata
            return [make(name=name, datatype=known[name].datatype, shape=known[name].shape) for name in names]

        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[model.fingerprint],
            platform=f"{manifest.backend}_{manifest.precision}",
            inputs=tell(function.inputs),
            outputs=tell(function.outputs),
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, call: Call) -> pb.ModelInferResponse:
        """Tensors to tensors."""
        function, model, known = self._find(request.model_name, request.model_version)
        outputs = _read_outputs(request, function)
        given = read_given(request, {name: known[name] for name in function.inputs}, function.parameters)
        wanted = function.fill(given, tuple(name for name in function.outputs if name in outputs), model.name)
        raw = bool(request.raw_input_contents) or not request.inputs
        if not raw:
            rows = len(given.get("images", given.get("latents", ()))) or wanted.count
            _check_typed([known[name] for name in outputs], rows)
        answered = pb.ModelInferResponse(model_name=request.model_name, model_version=model.fingerprint, id=request.id)
        attributes = len(given.get("attributes", ()))
        del request, given  # numbers that aren't raw take four times their room in it
        try:
            answer = await getattr(self._engine, function.method)(wanted, call)
        except (InvalidRequest, UnknownAttribute) as error:
            error.field = tensor_of(error.field, attributes)
            raise
        except Overloaded as error:
            error.recheck = None  # the protocol's other models come by the same method, and have queues of their own
            raise
        write(answered, {name: output_of(answer, name) for name in outputs}, raw=raw)
        return answered

    def _find(self, name: str, version: str) -> tuple[Function, Model, dict[str, Tensor]]:
        bundle, _, short = name.rpartition(".")
        if short not in MODELS or (bundle and bundle not in self._repository.names):
            bundles = self._repository.names
            known = [*MODELS, *(f"{one}.{other}" for one in bundles if len(bundles) > 1 for other in MODELS)]
            raise UnknownModel(f"no model {name!r} is served here; there is: {', '.join(known)}")
        model = self._repository.get(bundle)
        if version not in ("", model.fingerprint):
            raise UnknownModel(
                f"model {name} is served in version {model.fingerprint!r}, not {version!r}; ask for that, or for none"
            )
        manifest = model.bundle.manifest
        return MODELS[short], model, tensors(manifest.image_size, manifest.latent_dim)


def _read_outputs(request: pb.ModelInferRequest, function: Function) -> list[str]:
    """Names of the tensors that are to come back."""
    if not request.outputs:
        return list(function.outputs)
    for one in request.outputs:
        if one.name not in function.outputs:
            raise InvalidRequest(
                f"the model has no output {one.name!r}; it gives: {', '.join(function.outputs)}", "outputs"
            )
        refuse_extensions(one, f"output {one.name}")
    return list(dict.fromkeys(one.name for one in request.outputs))


def _check_typed(outputs: Sequence[Tensor], rows: int) -> None:
    """Refuses what would have too many values in its answer, before it is computed."""
    values = rows * sum(math.prod(one.shape[1:]) for one in outputs)
    if values > MAX_TYPED:
        raise InvalidRequest(
            f"the answer would have {values} values; at most {MAX_TYPED} are sent in contents: send "
            "raw_input_contents, and the answer is raw, too",
            "inputs",
        )
