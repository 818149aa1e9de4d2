"""Which of the engine's rooms may import which; read from the source, so imports inside functions count as well."""

import pytest
from rooms import Rooms, room

ENGINE = Rooms("engine")
TOP = {
    "engine",
    "engine.__main__",
    "engine.arrays",
    "engine.bundle",
    "engine.command_line",
    "engine.config",
    "engine.errors",
    "engine.server",
    "engine.validation",
    "engine.version",
}
"""Modules that stand in no room."""


def reached_by(name: str) -> set[str]:
    """Modules, also of others, that a room needs, without those of the room itself."""
    needed = ENGINE.closure({module for module in ENGINE.modules if room(module) == name})
    return {module for module in needed if room(module) != name}


def test_no_room_reaches_itself() -> None:
    assert not ENGINE.circles()


def test_every_module_stands_in_a_room() -> None:
    assert {name for name in ENGINE.modules if name.count(".") < 2 and ENGINE.modules[name].name != "__init__.py"} | {
        "engine"
    } == TOP
    sizes = {folder: len([*folder.glob("*.py")]) for folder in {path.parent for path in ENGINE.modules.values()}}
    assert max(sizes.values()) <= 15, sizes


@pytest.mark.parametrize(
    ("name", "strangers"),
    [
        # What computes knows no wire.
        ("engine.models", ("protos", "grpc", "google", "engine.service", "engine.transport", "engine.access")),
        ("engine.backends", ("protos", "grpc", "google", "engine.batching", "engine.models", "engine.images")),
        ("engine.batching", ("protos", "grpc", "google", "engine.backends", "engine.latents", "engine.images")),
        ("engine.latents", ("protos", "grpc", "google", "engine.bundle", "engine.images")),
        ("engine.images", ("protos", "grpc", "google", "engine.service", "engine.telemetry", "engine.batching")),
        # What carries calls knows no models.
        ("engine.transport", ("protos", "numpy", "engine.access", "engine.service", "engine.telemetry")),
        ("engine.access", ("protos", "numpy", "engine.transport", "engine.service", "engine.telemetry")),
        ("engine.telemetry", ("protos", "numpy", "engine.access", "engine.service", "engine.transport")),
        # A client is no server.
        ("engine.client", ("engine.server", "engine.service", "engine.transport", "engine.bundle", "engine.backends")),
        ("engine.page", ("engine.server", "engine.service", "engine.transport", "engine.bundle", "engine.backends")),
        ("engine.proof", ("protos", "grpc", "google", "engine.models", "engine.service")),
    ],
)
def test_rooms_know_nothing_of_what_is_above_them(name: str, strangers: tuple[str, ...]) -> None:
    known = reached_by(name)
    assert not [module for module in known if module.startswith(tuple(f"{one}." for one in strangers))]
    assert not known & set(strangers)


def test_the_engine_needs_neither_trainer_nor_torch() -> None:
    known = {other.partition(".")[0] for module in ENGINE.modules for other in ENGINE.imports(module)}
    assert not known & {"torch", "torchvision", "trainer", "export", "benchmarks", "tests"}
