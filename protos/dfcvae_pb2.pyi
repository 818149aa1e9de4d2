from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ImageFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_FORMAT_UNSPECIFIED: _ClassVar[ImageFormat]
    IMAGE_FORMAT_RAW: _ClassVar[ImageFormat]
    IMAGE_FORMAT_JPEG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_PNG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_WEBP: _ClassVar[ImageFormat]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_BACKGROUND: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]

class EditResult(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EDIT_RESULT_UNSPECIFIED: _ClassVar[EditResult]
    EDIT_RESULT_IMAGES: _ClassVar[EditResult]
    EDIT_RESULT_LATENTS: _ClassVar[EditResult]
    EDIT_RESULT_IMAGES_AND_LATENTS: _ClassVar[EditResult]

class Walk(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WALK_UNSPECIFIED: _ClassVar[Walk]
    WALK_LINEAR: _ClassVar[Walk]
    WALK_SPHERICAL: _ClassVar[Walk]

class Distribution(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DISTRIBUTION_UNSPECIFIED: _ClassVar[Distribution]
    DISTRIBUTION_STANDARD: _ClassVar[Distribution]
    DISTRIBUTION_FITTED: _ClassVar[Distribution]
    DISTRIBUTION_MIXTURE: _ClassVar[Distribution]
IMAGE_FORMAT_UNSPECIFIED: ImageFormat
IMAGE_FORMAT_RAW: ImageFormat
IMAGE_FORMAT_JPEG: ImageFormat
IMAGE_FORMAT_PNG: ImageFormat
IMAGE_FORMAT_WEBP: ImageFormat
PRIORITY_UNSPECIFIED: Priority
PRIORITY_NORMAL: Priority
PRIORITY_BACKGROUND: Priority
PRIORITY_INTERACTIVE: Priority
EDIT_RESULT_UNSPECIFIED: EditResult
EDIT_RESULT_IMAGES: EditResult
EDIT_RESULT_LATENTS: EditResult
EDIT_RESULT_IMAGES_AND_LATENTS: EditResult
WALK_UNSPECIFIED: Walk
WALK_LINEAR: Walk
WALK_SPHERICAL: Walk
DISTRIBUTION_UNSPECIFIED: Distribution
DISTRIBUTION_STANDARD: Distribution
DISTRIBUTION_FITTED: Distribution
DISTRIBUTION_MIXTURE: Distribution

class RawImages(_message.Message):
    __slots__ = ("count", "height", "width", "data")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    count: int
    height: int
    width: int
    data: bytes
    def __init__(self, count: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class EncodedImages(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, files: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ImageBatch(_message.Message):
    __slots__ = ("raw", "files")
    RAW_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    raw: RawImages
    files: EncodedImages
    def __init__(self, raw: _Optional[_Union[RawImages, _Mapping]] = ..., files: _Optional[_Union[EncodedImages, _Mapping]] = ...) -> None: ...

class LatentBatch(_message.Message):
    __slots__ = ("count", "dim", "data")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    count: int
    dim: int
    data: bytes
    def __init__(self, count: _Optional[int] = ..., dim: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ImageOutput(_message.Message):
    __slots__ = ("format", "quality")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    format: ImageFormat
    quality: int
    def __init__(self, format: _Optional[_Union[ImageFormat, str]] = ..., quality: _Optional[int] = ...) -> None: ...

class EncodeRequest(_message.Message):
    __slots__ = ("images", "model", "priority")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    images: ImageBatch
    model: str
    priority: Priority
    def __init__(self, images: _Optional[_Union[ImageBatch, _Mapping]] = ..., model: _Optional[str] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("mu", "log_var")
    MU_FIELD_NUMBER: _ClassVar[int]
    LOG_VAR_FIELD_NUMBER: _ClassVar[int]
    mu: LatentBatch
    log_var: LatentBatch
    def __init__(self, mu: _Optional[_Union[LatentBatch, _Mapping]] = ..., log_var: _Optional[_Union[LatentBatch, _Mapping]] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("latents", "output", "model", "priority")
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    latents: LatentBatch
    output: ImageOutput
    model: str
    priority: Priority
    def __init__(self, latents: _Optional[_Union[LatentBatch, _Mapping]] = ..., output: _Optional[_Union[ImageOutput, _Mapping]] = ..., model: _Optional[str] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("images",)
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    images: ImageBatch
    def __init__(self, images: _Optional[_Union[ImageBatch, _Mapping]] = ...) -> None: ...

class Edit(_message.Message):
    __slots__ = ("attribute", "direction", "strength")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    direction: bytes
    strength: float
    def __init__(self, attribute: _Optional[str] = ..., direction: _Optional[bytes] = ..., strength: _Optional[float] = ...) -> None: ...

class EditRequest(_message.Message):
    __slots__ = ("images", "latents", "edits", "keep", "result", "output", "having", "lacking", "model", "priority")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    HAVING_FIELD_NUMBER: _ClassVar[int]
    LACKING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    images: ImageBatch
    latents: LatentBatch
    edits: _containers.RepeatedCompositeFieldContainer[Edit]
    keep: _containers.RepeatedScalarFieldContainer[str]
    result: EditResult
    output: ImageOutput
    having: _containers.RepeatedScalarFieldContainer[str]
    lacking: _containers.RepeatedScalarFieldContainer[str]
    model: str
    priority: Priority
    def __init__(self, images: _Optional[_Union[ImageBatch, _Mapping]] = ..., latents: _Optional[_Union[LatentBatch, _Mapping]] = ..., edits: _Optional[_Iterable[_Union[Edit, _Mapping]]] = ..., keep: _Optional[_Iterable[str]] = ..., result: _Optional[_Union[EditResult, str]] = ..., output: _Optional[_Union[ImageOutput, _Mapping]] = ..., having: _Optional[_Iterable[str]] = ..., lacking: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class EditResponse(_message.Message):
    __slots__ = ("images", "latents")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    images: ImageBatch
    latents: LatentBatch
    def __init__(self, images: _Optional[_Union[ImageBatch, _Mapping]] = ..., latents: _Optional[_Union[LatentBatch, _Mapping]] = ...) -> None: ...

class EditStreamRequest(_message.Message):
    __slots__ = ("images", "latents", "edits", "keep", "result", "output", "id", "having", "lacking", "model", "priority")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    HAVING_FIELD_NUMBER: _ClassVar[int]
    LACKING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    images: ImageBatch
    latents: LatentBatch
    edits: _containers.RepeatedCompositeFieldContainer[Edit]
    keep: _containers.RepeatedScalarFieldContainer[str]
    result: EditResult
    output: ImageOutput
    id: int
    having: _containers.RepeatedScalarFieldContainer[str]
    lacking: _containers.RepeatedScalarFieldContainer[str]
    model: str
    priority: Priority
    def __init__(self, images: _Optional[_Union[ImageBatch, _Mapping]] = ..., latents: _Optional[_Union[LatentBatch, _Mapping]] = ..., edits: _Optional[_Iterable[_Union[Edit, _Mapping]]] = ..., keep: _Optional[_Iterable[str]] = ..., result: _Optional[_Union[EditResult, str]] = ..., output: _Optional[_Union[ImageOutput, _Mapping]] = ..., id: _Optional[int] = ..., having: _Optional[_Iterable[str]] = ..., lacking: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class StreamError(_message.Message):
    __slots__ = ("code", "message", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    retry_after_ms: int
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class EditStreamResponse(_message.Message):
    __slots__ = ("edited", "error", "id")
    EDITED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    edited: EditResponse
    error: StreamError
    id: int
    def __init__(self, edited: _Optional[_Union[EditResponse, _Mapping]] = ..., error: _Optional[_Union[StreamError, _Mapping]] = ..., id: _Optional[int] = ...) -> None: ...

class WalkEnd(_message.Message):
    __slots__ = ("images", "latents")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    images: ImageBatch
    latents: LatentBatch
    def __init__(self, images: _Optional[_Union[ImageBatch, _Mapping]] = ..., latents: _Optional[_Union[LatentBatch, _Mapping]] = ...) -> None: ...

class InterpolateRequest(_message.Message):
    __slots__ = ("start", "end", "steps", "walk", "result", "output", "model", "priority")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    WALK_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    start: WalkEnd
    end: WalkEnd
    steps: int
    walk: Walk
    result: EditResult
    output: ImageOutput
    model: str
    priority: Priority
    def __init__(self, start: _Optional[_Union[WalkEnd, _Mapping]] = ..., end: _Optional[_Union[WalkEnd, _Mapping]] = ..., steps: _Optional[int] = ..., walk: _Optional[_Union[Walk, str]] = ..., result: _Optional[_Union[EditResult, str]] = ..., output: _Optional[_Union[ImageOutput, _Mapping]] = ..., model: _Optional[str] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class InterpolateResponse(_message.Message):
    __slots__ = ("images", "latents")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    images: ImageBatch
    latents: LatentBatch
    def __init__(self, images: _Optional[_Union[ImageBatch, _Mapping]] = ..., latents: _Optional[_Union[LatentBatch, _Mapping]] = ...) -> None: ...

class SampleRequest(_message.Message):
    __slots__ = ("count", "seed", "temperature", "distribution", "result", "output", "having", "lacking", "model", "priority")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    HAVING_FIELD_NUMBER: _ClassVar[int]
    LACKING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    count: int
    seed: int
    temperature: float
    distribution: Distribution
    result: EditResult
    output: ImageOutput
    having: _containers.RepeatedScalarFieldContainer[str]
    lacking: _containers.RepeatedScalarFieldContainer[str]
    model: str
    priority: Priority
    def __init__(self, count: _Optional[int] = ..., seed: _Optional[int] = ..., temperature: _Optional[float] = ..., distribution: _Optional[_Union[Distribution, str]] = ..., result: _Optional[_Union[EditResult, str]] = ..., output: _Optional[_Union[ImageOutput, _Mapping]] = ..., having: _Optional[_Iterable[str]] = ..., lacking: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class SampleResponse(_message.Message):
    __slots__ = ("images", "latents")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    images: ImageBatch
    latents: LatentBatch
    def __init__(self, images: _Optional[_Union[ImageBatch, _Mapping]] = ..., latents: _Optional[_Union[LatentBatch, _Mapping]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class Attribute(_message.Message):
    __slots__ = ("name", "positives", "negatives", "kind", "can_condition")
    NAME_FIELD_NUMBER: _ClassVar[int]
    POSITIVES_FIELD_NUMBER: _ClassVar[int]
    NEGATIVES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CAN_CONDITION_FIELD_NUMBER: _ClassVar[int]
    name: str
    positives: int
    negatives: int
    kind: str
    can_condition: bool
    def __init__(self, name: _Optional[str] = ..., positives: _Optional[int] = ..., negatives: _Optional[int] = ..., kind: _Optional[str] = ..., can_condition: bool = ...) -> None: ...

class Preprocessing(_message.Message):
    __slots__ = ("crop", "resize", "source_width", "source_height", "landmarks")
    CROP_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    SOURCE_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    LANDMARKS_FIELD_NUMBER: _ClassVar[int]
    crop: int
    resize: str
    source_width: int
    source_height: int
    landmarks: _containers.RepeatedCompositeFieldContainer[Point]
    def __init__(self, crop: _Optional[int] = ..., resize: _Optional[str] = ..., source_width: _Optional[int] = ..., source_height: _Optional[int] = ..., landmarks: _Optional[_Iterable[_Union[Point, _Mapping]]] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("x", "y")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    x: float
    y: float
    def __init__(self, x: _Optional[float] = ..., y: _Optional[float] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_images_per_request", "max_message_bytes", "max_queued_images", "max_pixels_per_file", "max_concurrent_streams", "max_images_per_second", "max_requests_ahead")
    MAX_IMAGES_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_IMAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_PER_FILE_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_STREAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUESTS_AHEAD_FIELD_NUMBER: _ClassVar[int]
    max_images_per_request: int
    max_message_bytes: int
    max_queued_images: int
    max_pixels_per_file: int
    max_concurrent_streams: int
    max_images_per_second: float
    max_requests_ahead: int
    def __init__(self, max_images_per_request: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_queued_images: _Optional[int] = ..., max_pixels_per_file: _Optional[int] = ..., max_concurrent_streams: _Optional[int] = ..., max_images_per_second: _Optional[float] = ..., max_requests_ahead: _Optional[int] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("image_size", "latent_dim", "attributes", "backend", "precision", "max_batch_size", "limits", "preprocessing", "versions", "model", "models", "fingerprint", "distributions", "max_delay_ms")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    LATENT_DIM_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    image_size: int
    latent_dim: int
    attributes: _containers.RepeatedCompositeFieldContainer[Attribute]
    backend: str
    precision: str
    max_batch_size: int
    limits: Limits
    preprocessing: Preprocessing
    versions: _containers.ScalarMap[str, str]
    model: str
    models: _containers.RepeatedScalarFieldContainer[str]
    fingerprint: str
    distributions: _containers.RepeatedScalarFieldContainer[Distribution]
    max_delay_ms: float
    def __init__(self, image_size: _Optional[int] = ..., latent_dim: _Optional[int] = ..., attributes: _Optional[_Iterable[_Union[Attribute, _Mapping]]] = ..., backend: _Optional[str] = ..., precision: _Optional[str] = ..., max_batch_size: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., preprocessing: _Optional[_Union[Preprocessing, _Mapping]] = ..., versions: _Optional[_Mapping[str, str]] = ..., model: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., fingerprint: _Optional[str] = ..., distributions: _Optional[_Iterable[_Union[Distribution, str]]] = ..., max_delay_ms: _Optional[float] = ...) -> None: ...
