"""Who may import whom: the contracts of `pyproject.toml`, and what they cannot say, read from the source itself."""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import REPOSITORY, run_to_end

PACKAGE = REPOSITORY / "ddp_bp"

# What each room needs besides the standard library and ddp_bp. What is not here belongs in another room.
LIBRARIES = {
    "engine": {"numpy"},
    "nn": {"numpy", "msgspec"},
    "optim": {"numpy"},
    "data": {"numpy"},
    "parallel": {"numpy", "mpi4py"},
    "checkpoint": {"numpy", "msgspec", "safetensors"},
    "wire": {"msgspec"},
    "recipes": {"msgspec"},
    "worker": {"numpy", "msgspec", "zmq", "threadpoolctl"},
    "bench": {"numpy", "msgspec", "torch"},
    "chaos": set(),
    "coordinator": {"numpy", "msgspec", "zmq", "prometheus_client", "starlette", "uvicorn"},
    "cli": {"click", "msgspec", "rich"},
    "errors.py": set(),
    "_version.py": set(),
    "__init__.py": set(),
    "__main__.py": set(),
}
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


def lint(folder: Path):
    """import-linter on the package in `folder`, by the contracts of this repository."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(sys.argv[1], no_cache=True))"
    command = [sys.executable, "-c", code, REPOSITORY / "pyproject.toml"]
    return run_to_end(command, 60, cwd=folder, PYTHONPATH=str(folder))


def imported(tree: ast.AST) -> Iterator[str]:
    """The full name of every module imported anywhere in a file, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield node.module or ""
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def uses_environment(tree: ast.AST) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT:
            return True
        if isinstance(node, ast.ImportFrom) and any(alias.name in ENVIRONMENT for alias in node.names):
            return True
    return False


def imports_torch_at_once(tree: ast.Module) -> bool:
    """Whether PyTorch is imported anywhere but inside a function, so that a module could not do without it."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom) and any(m.split(".")[0] == "torch" for m in imported(node)):
            return True
        waiting += [n for n in ast.iter_child_nodes(node) if not isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return False


def violations(package: Path) -> list[str]:
    """Every import, and every use of the environment, that its place in the package does not allow."""
    found = []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        room = name.split("/")[0]
        tree = ast.parse(path.read_bytes())
        for module in imported(tree):
            library = module.split(".")[0]
            is_ours = library == "ddp_bp" or library in sys.stdlib_module_names or library in LIBRARIES[room]
            if not is_ours or library in PICKLES or (library == "mpi4py" and name != "parallel/mpi.py"):
                found.append(f"{name} imports {module}")
        if uses_environment(tree) and name != "cli/environment.py":
            found.append(f"{name} uses the environment")
        if imports_torch_at_once(tree):
            found.append(f"{name} cannot be imported without torch")
    return found


def test_rooms_import_only_what_the_contracts_allow() -> None:
    result = lint(REPOSITORY)
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


def test_libraries_pickle_and_the_environment_stay_where_they_belong() -> None:
    assert violations(PACKAGE) == []
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= LIBRARIES.keys(), "a new room needs a line in LIBRARIES, and its place in pyproject.toml"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, to break rules in."""
    shutil.copytree(PACKAGE, tmp_path / "ddp_bp", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def append(package: Path, additions: dict[str, str]) -> None:
    for name, text in additions.items():
        with (package / name).open("a") as file:
            file.write(f"\n{text}\n")


@pytest.mark.parametrize(
    ("contract", "module", "imports"),
    [
        ("Rooms are layers", "engine/tensor.py", "ddp_bp.data.plan"),
        ("Rooms are layers", "worker/ledger.py", "ddp_bp.coordinator.ledger"),
        ("Rooms are layers", "data/plan.py", "ddp_bp.nn.module"),
        ("The coordinator sees only", "coordinator/state.py", "ddp_bp.parallel.tree"),
        ("Modules and optimizers see only", "optim/sgd.py", "ddp_bp.parallel.membership"),
        ("Rooms are layers", "worker/step.py", "ddp_bp.bench.race"),
        ("Benchmarks and chaos do not see the coordinator", "bench/race.py", "ddp_bp.coordinator.ledger"),
        ("Benchmarks and chaos do not see the coordinator", "chaos/verdict.py", "ddp_bp.coordinator.ledger"),
        ("Only worker, bench and cli see recipes", "coordinator/config.py", "ddp_bp.recipes.schema"),
        ("Only bench.torch_peer imports PyTorch", "bench/summing.py", "torch"),
        ("Only parallel.mpi imports mpi4py", "worker/step.py", "mpi4py"),
    ],
)
def test_a_broken_contract_is_found(copy: Path, contract: str, module: str, imports: str) -> None:
    append(copy / "ddp_bp", {module: f"import {imports}"})
    result = lint(copy)
    assert result.returncode == 1, result.stderr
    assert any(line.startswith(contract) and "BROKEN" in line for line in result.stdout.splitlines()), result.stdout


def test_a_room_without_a_place_is_found(copy: Path) -> None:
    (copy / "ddp_bp" / "attic").mkdir()
    (copy / "ddp_bp" / "attic" / "__init__.py").touch()
    result = lint(copy)
    assert result.returncode == 1
    assert "attic" in result.stdout


def test_every_other_broken_rule_is_found(copy: Path) -> None:
    additions = {
        "bench/torch_peer.py": "import torch.nn",
        "cli/view.py": "def late():\n    import numpy",
        "data/plan.py": "import os\nos.environ['A'] = '1'",
        "engine/tensor.py": "import importlib\nimportlib.import_module('torch')",
        "parallel/tree.py": "from mpi4py import MPI",
        "recipes/schema.py": "import numpy.linalg",
        "wire/codec.py": "import pickle",
        "worker/step.py": "from os import getenv",
    }
    append(copy / "ddp_bp", additions)
    assert violations(copy / "ddp_bp") == [
        "bench/torch_peer.py cannot be imported without torch",
        "cli/view.py imports numpy",
        "data/plan.py uses the environment",
        "engine/tensor.py imports torch",
        "parallel/tree.py imports mpi4py",
        "recipes/schema.py imports numpy.linalg",
        "wire/codec.py imports pickle",
        "worker/step.py uses the environment",
    ]
