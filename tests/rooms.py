"""The modules of a package and what they import, read from the source, so imports inside functions count as well."""

import ast
from functools import cache
from pathlib import Path

from servers import ROOT


class Rooms:
    """A package, whose rooms are the packages and modules directly in it.

    Attributes:
        modules: Files by the names of their modules.
    """

    def __init__(self, package: str, root: Path = ROOT) -> None:
        self._package = package
        self.modules: dict[str, Path] = {
            ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
            for path in (root / package).rglob("*.py")
        }
        self.imports = cache(self._imports)

    def _imports(self, module: str) -> frozenset[str]:
        """The modules that one imports, of this project as well as others."""
        found: set[str] = set()
        for node in ast.walk(ast.parse(self.modules[module].read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{name.name}" for name in node.names}
                found |= {name if name in self.modules else node.module for name in names}
        return frozenset(found)

    def closure(self, modules: set[str]) -> set[str]:
        """These modules and all that they need, also of others."""
        seen: set[str] = set()
        waiting = modules
        while waiting:
            seen |= waiting
            waiting = {other for one in waiting if one in self.modules for other in self.imports(one)} - seen
        return seen

    def circles(self) -> list[str]:
        """Rooms that reach themselves through others."""
        known = [(one, other) for one in self.modules for other in self.imports(one) if other in self.modules]
        arrows = {(room(one), room(other)) for one, other in known}
        reached = {(a, b) for a, b in arrows if a not in (b, self._package) and b != self._package}
        while more := {(a, d) for a, b in reached for c, d in reached if b == c} - reached:
            reached |= more
        return [a for a, b in reached if a == b]


def room(module: str) -> str:
    """The room that a module stands in."""
    return ".".join(module.split(".")[:2])
