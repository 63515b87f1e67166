"""What a stranger sends is never executed: no module that could do so is used by the server's packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVER_PACKAGES = ("farm_server", "coordinator", "storage", "protocol")
PACKAGES = (*SERVER_PACKAGES, "farm_client")
UNPICKLERS = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "pandas", "code"}
RUNNERS = {"runpy", "imp", "codeop"}
CALLS = {"eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "builtins.compile"}
LOADERS = {
    "torch.load",
    "torch.serialization.load",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "torch.hub.load",
    "torch.export.load",
    "importlib.util.spec_from_file_location",
    "yaml.load",
    "yaml.unsafe_load",
}
LIGHT_ROOTS = ("farm_client.agent", "farm_client.task", "protocol")
"""What stays light, with all that it imports: torch is for the executor alone."""
TORCH_SIDE = "protocol.codecs"
"""The one package below those that works on tensors; nothing light may import it."""


def sources(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def dotted(node: ast.expr) -> str:
    """Return ``a.b.c`` for such an expression, or nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (inner := dotted(node.value)):
        return f"{inner}.{node.attr}"
    return ""


def aliases(tree: ast.AST) -> dict[str, str]:
    """Return what each imported name stands for: ``{"load": "torch.load"}``."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Yield every module named by an import, at any depth; ``from a import b`` yields ``a`` and ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def offences(source: str) -> list[str]:
    """Return what in ``source`` could execute received bytes."""
    tree = ast.parse(source)
    known = aliases(tree)
    found = [m for m in imported_modules(tree) if m.split(".")[0] in UNPICKLERS | RUNNERS or m in LOADERS]
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and (path := dotted(node)):
            head, _, rest = path.partition(".")
            full = ".".join(filter(None, [known.get(head, head), rest]))
            found += [full] if full in LOADERS else []
        if isinstance(node, ast.Call):
            found += [name] if (name := dotted(node.func)) in CALLS else []
            found += [f"{k.arg}=" for k in node.keywords if k.arg == "allow_pickle" and not is_false(k.value)]
    return found


@pytest.mark.parametrize("path", sources(*SERVER_PACKAGES), ids=name_of)
def test_the_server_executes_nothing_that_it_receives(path: Path) -> None:
    assert offences(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import marshal",
        "import dill as d",
        "import torch\ntorch.load(p)",
        "import torch as t\nt.jit.load(p)",
        "from torch import load",
        "from torch import load as fetch\nfetch(p)",
        "import torch\nreader = torch.load",
        "eval(x)",
        "exec(x)",
        "compile(x, 'f', 'exec')",
        "import builtins\nbuiltins.exec(x)",
        "__import__(x)",
        "import numpy as np\nnp.load(p, allow_pickle=True)",
        "import numpy as np\nnp.load(p, allow_pickle=trusted)",
        "import runpy",
        "import importlib.util\nimportlib.util.spec_from_file_location('m', p)",
    ],
)
def test_the_search_finds_what_it_is_for(source: str) -> None:
    assert offences(source)


@pytest.mark.parametrize(
    "source",
    [
        "from safetensors.torch import load",
        "import re\nre.compile('x')",
        "model.eval()",
        "import numpy as np\nnp.load(p, allow_pickle=False)",
    ],
)
def test_the_search_leaves_harmless_namesakes_alone(source: str) -> None:
    assert offences(source) == []


class _WithoutTypes(ast.NodeTransformer):
    """Leaves out what only the type checker imports."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        return (
            node.orelse if dotted(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"} else self.generic_visit(node)
        )


def imports_of(modules: dict[str, ast.AST], name: str) -> set[str]:
    """Return all that importing ``name`` imports: what its source names, and its parent packages."""
    parents = {name.rpartition(".")[0]} - {""}
    return parents | set(imported_modules(_WithoutTypes().visit(modules[name])))


def test_the_agent_never_imports_torch() -> None:
    modules: dict[str, ast.AST] = {name_of(p): ast.parse(p.read_text()) for p in sources(*PACKAGES)}
    todo = [(name, name) for name in modules if name.startswith(LIGHT_ROOTS) and not name.startswith(TORCH_SIDE)]
    seen: set[str] = set()
    while todo:
        name, chain = todo.pop()
        assert name.split(".")[0] not in {"torch", "lightning", "pytorch_lightning"}, f"torch is imported by {chain}"
        assert not name.startswith("safetensors.torch"), f"torch is imported by {chain}"
        if name in modules and name not in seen:
            seen.add(name)
            todo += [(inner, f"{chain} -> {inner}") for inner in imports_of(modules, name)]
    assert seen & {"protocol.messages"}, "the walk has followed imports across packages"
