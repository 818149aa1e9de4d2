"""Which of the engine's rooms may import which; read from the source, so imports inside functions count as well."""

import ast
from functools import cache

import pytest
from servers import ROOT

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "engine").rglob("*.py")
}
TOP = {
    "engine",
    "engine.__main__",
    "engine.bundle",
    "engine.config",
    "engine.errors",
    "engine.server",
    "engine.version",
}
"""Modules that stand in no room."""


@cache
def imports(module: str) -> frozenset[str]:
    """The modules that one imports, of this project as well as others."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return frozenset(found)


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def reached_by(name: str) -> set[str]:
    """Modules, also of others, that a room needs, without those of the room itself."""
    seen: set[str] = set()
    waiting = {module for module in MODULES if room(module) == name}
    while waiting:
        seen |= waiting
        waiting = {other for module in waiting if module in MODULES for other in imports(module)} - seen
    return {module for module in seen if room(module) != name}


def test_no_room_reaches_itself() -> None:
    arrows = {(room(module), room(other)) for module in MODULES for other in imports(module) if other in MODULES}
    reached = {(a, b) for a, b in arrows if a not in (b, "engine") and b != "engine"}
    while more := {(a, d) for a, b in reached for c, d in reached if b == c} - reached:
        reached |= more
    assert not [a for a, b in reached if a == b]


def test_every_module_stands_in_a_room() -> None:
    assert {name for name in MODULES if name.count(".") < 2 and MODULES[name].name != "__init__.py"} | {"engine"} == TOP
    sizes = {folder: len([*folder.glob("*.py")]) for folder in {path.parent for path in MODULES.values()}}
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
        ("engine.proof", ("protos", "grpc", "google", "engine.models", "engine.service")),
    ],
)
def test_rooms_know_nothing_of_what_is_above_them(name: str, strangers: tuple[str, ...]) -> None:
    known = reached_by(name)
    assert not [module for module in known if module.startswith(tuple(f"{one}." for one in strangers))]
    assert not known & set(strangers)


def test_the_engine_needs_neither_trainer_nor_torch() -> None:
    known = {other.partition(".")[0] for module in MODULES for other in imports(module)}
    assert not known & {"torch", "torchvision", "trainer", "export", "benchmarks", "tests"}
