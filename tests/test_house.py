"""The house: imports go one way, and files and functions keep to their size."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "unionfs"
FILES = sorted(PACKAGE.rglob("*.py"))

#: What each part may import of the package. A request walks down; nothing calls back upstairs.
MAY_IMPORT = {
    # An engine is one module: nothing else of the block driver knows which it is.
    "driver.block.engine": {"errors"},
    "driver.block.devices": {
        "database",
        "driver.block.blockdev",
        "driver.block.engine",
        "driver.block.filesystem",
        "driver.block.locks",
        "errors",
    },
    "layer": {"layer", "errors", "options"},
    "union": {"union", "layer", "errors", "options", "fuse.interface", "log", "waiting"},
    "fuse.interface": {"errors", "options"},
    "fuse": {"fuse", "errors", "log", "options", "waiting"},
    # Process 1 of a container can read no file of ours any more: it works with what it has.
    "container.init": {"container", "errors", "layer.syscalls"},
    "container.rootfs": {"container.spec", "errors", "layer.syscalls"},
    "container.identity": {"layer.syscalls"},
    "container.terminal": set(),
    "container.spec": {"errors", "sizes"},
    "container.users": {"errors", "layer.syscalls"},
    # A driver mounts nothing for its users; what it does with layers it does as a user would.
    "driver": {
        *("database", "driver", "errors", "filelocks", "fuse.mounting", "layer", "mount"),
        "namespace",
        *("ondisk", "options", "optstring", "optwords", "registry", "reserve", "sizes"),
        *("union.changes", "unmount"),
    },
    "store": {
        *("database", "driver", "errors", "filelocks", "fuse.mounting", "layer", "mount"),
        "namespace",
        *(
            "ondisk",
            "options",
            "optstring",
            "optwords",
            "registry",
            "sizes",
            "store",
            "union.changes",
            "union.merge",
        ),
    },
    "database": {"errors", "reserve"},
    "filelocks": set(),
    "ondisk": set(),
    "reserve": set(),
    "sizes": set(),
    "container": {
        *("container", "driver", "errors", "fuse.mounting", "layer", "namespace", "registry"),
        "store",
    },
    "plugin.socket": {"errors"},
    "plugin.supervisor": {"log"},
    # containerd asks for a driver's own verbs, and mounts what they tell.
    "plugin.snapshotter": {"driver", "errors", "fuse.mounting", "log", "plugin", "store"},
    "plugin": {"errors", "fuse.mounting", "log", "plugin", "registry", "store"},
    "namespace": {"layer.syscalls"},
    "log": set(),
    "waiting": set(),
    "options": {"errors", "optstring"},
    "optwords": {"errors", "options", "optstring"},
    "optstring": {"errors"},
    "errors": set(),
}

#: Modules with one user each, so that there is one place for what they do.
ONLY_IN = {
    "pyfuse3": {"fuse/libfuse.py"},
    "ctypes": {"layer/syscalls.py", "fuse/mounting.py"},
    "backports": {"layer/compression.py"},
    "grpc": {"plugin/snapshotter/server.py"},
}


def module_name(path: Path) -> str:
    """`fuse.interface` for unionfs/fuse/interface.py, `fuse` for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> Iterator[str]:
    """The full names of what a file imports at run time."""
    module = module_name(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _imported_from(node, module, path.name == "__init__.py")


def _imported_from(node: ast.ImportFrom, module: str, package: bool) -> Iterator[str]:
    base = node.module or ""
    if node.level:
        parents = ["unionfs", *module.split(".")]
        parents = parents[: len(parents) - node.level + (1 if package else 0)]
        base = ".".join([*parents, base] if base else parents)
    for alias in node.names:
        yield f"{base}.{alias.name}"


def rule_for(module: str) -> set[str] | None:
    """The strictest rule that names *module*."""
    parts = module.split(".")
    while parts:
        if ".".join(parts) in MAY_IMPORT:
            return MAY_IMPORT[".".join(parts)]
        parts.pop()
    return None


def allowed(imported: str, rule: set[str]) -> bool:
    return any(imported == name or imported.startswith(f"{name}.") for name in rule)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_one_way(path: Path) -> None:
    rule = rule_for(module_name(path))
    if rule is None:
        return
    for name in imports(path):
        inside = name.removeprefix("unionfs.")
        if name.startswith("unionfs.") and inside != "__version__":
            assert allowed(inside, rule), f"{module_name(path)} imports {name}"


def test_only_the_command_knows_the_command() -> None:
    for path in FILES:
        if path.parts[len(PACKAGE.parts)] not in ("cli", "__main__.py"):
            for name in imports(path):
                assert not name.startswith("unionfs.cli"), path


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_have_one_user(library: str) -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        for name in imports(path)
        if name.split(".")[0] == library
    }
    assert users <= ONLY_IN[library]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= 60, f"{node.name} has {lines} lines"


def public(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in tree.body:
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield node


def test_modules_and_public_names_say_what_they_are() -> None:
    silent = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        if ast.get_docstring(tree) is None:
            silent.append(module_name(path))
        silent += [
            f"{module_name(path)}.{node.name}"
            for node in public(tree)
            if ast.get_docstring(node) is None
        ]
    assert silent == []
