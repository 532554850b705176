"""The import law of the house, read from the source text: every import in every file, also those in functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "distft"
FILES = sorted(PACKAGE.rglob("*.py"))

LEVELS: list[list[str]] = [
    [
        "errors",
        "schema",
        "atomic",
        "storage",
        "lock",
        "signing",
        "promotions",
        "component",
        "cluster",
        "sections",
        "job",
        "jobfile",
        "jobwords",
        "jobyaml",
        "searchspace",
        "deepspeed_keys",
    ],
    ["data", "models", "losses", "evaluate.metrics", "evaluate.pointwise", "topk", "item_vectors", "ann"],
    ["ranking"],
    ["train", "evaluate", "export", "report"],
    ["serve", "tune", "checkup", "plan", "submit"],
    ["deploy"],
    ["stages"],
    ["pipeline", "recommend", "doctor", "k8s", "chaos"],
    ["terminal"],
    ["cli"],
    ["__main__"],
]
"""From the bottom up. Names of one level do not import each other, except within the lowest and where ALLOWED."""

ALLOWED = {
    ("losses", "models"),  # a loss is a function of a model: it knows the protocol
    ("evaluate.pointwise", "evaluate.metrics"),  # intervals
}

RAY = {
    "cluster",
    "data.prepare",
    "train.loop",
    "train.driver",
    "train.room",
    "train.network",
    "train.failure",
    "train.supervisor",
    "train.nodes",
    "train.gauges",
    "evaluate.evaluate",
    "tune.trials",
    "tune.watch",
    "tune.gain",
    "serve.app",
    "serve.ingress",
    "serve.declared",
    "serve.metrics",
    "serve.replicas",
    "serve.server",
    "recommend.recommend",
    "deploy.live",
    "doctor",
    "submit",
    "chaos",
}
DEEPSPEED = {"train.engine", "train.checkpoint"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def place(module: str) -> tuple[int, str]:
    """(level, unit) of a module; a component's config belongs to the lowest level."""
    if module.endswith(".config"):
        return 0, "config"
    units = [(len(unit), level, unit) for level, names in enumerate(LEVELS) for unit in names]
    matches = [(size, level, unit) for size, level, unit in units if module == unit or module.startswith(unit + ".")]
    assert matches, f"distft.{module} has no place in the import law: add it to LEVELS"
    _, level, unit = max(matches)
    return level, unit


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path) -> set[str]:
    """Every module that a file imports when it runs."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if is_type_checking(node):
            for other in node.orelse:
                visit(other)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in below if (ROOT / (name.replace(".", "/") + ".py")).exists()}
            found.update(modules or {node.module})
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_imports_point_down_only(path):
    module = module_name(path)
    if path.name == "__init__.py":
        assert not imports(path) - {"__future__"}, "packages import nothing"
        return
    level, unit = place(module)
    for name in imports(path):
        if not name.startswith("distft.") or name == "distft.schema":
            continue
        other = name.removeprefix("distft.")
        other_level, other_unit = place(other)
        if module.endswith(".config") and other.rpartition(".")[0] == module.rpartition(".")[0]:
            continue  # a component's config builds its own code, when it is asked to
        if other_unit == unit or (unit, other_unit) in ALLOWED or (level == other_level == 0):
            continue
        assert other_level < level, f"distft.{module} (level {level}) imports {name} (level {other_level})"


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_ray_and_deepspeed_stay_where_they_belong(path):
    module, roots = module_name(path), {name.split(".")[0] for name in imports(path)}
    assert "ray" not in roots or module in RAY, f"distft.{module} imports ray"
    assert "deepspeed" not in roots or module in DEEPSPEED, f"distft.{module} imports deepspeed"


def test_no_file_is_a_catch_all():
    forbidden = {"utils", "common", "helpers", "manager", "misc"}
    assert not {path.stem for path in FILES} & forbidden


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    heavy = {"ray", "torch", "deepspeed", "pyarrow", "polars", "pydantic", "pandas", "rich"}
    assert not heavy & loaded_after("import distft, distft.cli.main")


def test_checking_a_job_loads_no_torch_ray_or_arrow():
    heavy = {"ray", "torch", "deepspeed", "pyarrow", "polars", "pandas"}
    assert not heavy & loaded_after("from distft.jobfile import load_job; load_job('jobs/quickstart.yaml')")


def test_every_component_folder_is_two_files():
    for folder in ("models", "losses", "data/sources"):
        for config in (PACKAGE / folder).glob("*/config.py"):
            code = [name for name in ("model.py", "loss.py", "source.py") if (config.parent / name).exists()]
            assert len(code) == 1, f"{config.parent} needs its config.py and one of model.py, loss.py, source.py"
