"""Clients of the server: `Client`, and `AsyncClient` for asyncio. Neither needs torch, nor a model."""

from engine.client.clients import AsyncClient, Client
from engine.client.errors import ClientError, FieldViolation
from engine.client.slider import AsyncSlider, Slider
from engine.client.values import (
    Attribute,
    ConditionalOptions,
    Distribution,
    Edited,
    Edits,
    FileFormat,
    Images,
    Model,
    Options,
    Posterior,
    Priority,
    Source,
    StreamEdit,
    Walk,
)

__all__ = [
    "AsyncClient",
    "AsyncSlider",
    "Attribute",
    "Client",
    "ClientError",
    "ConditionalOptions",
    "Distribution",
    "Edited",
    "Edits",
    "FieldViolation",
    "FileFormat",
    "Images",
    "Model",
    "Options",
    "Posterior",
    "Priority",
    "Slider",
    "Source",
    "StreamEdit",
    "Walk",
]
