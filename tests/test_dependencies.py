"""The two rules of the design about imports, and a check of the checker on a planted tree.

Imports are read from the source, at any depth of a file: in functions, under `TYPE_CHECKING` and through
`import_module("…")` too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "nnunet_qa"
NESTED = ("trainers", "dataset_conversion")
"""Folders at the top of the checkout that the installed package holds under the same name."""

LAYERS = (
    ("errors", "files", "progress", "cases", "config", "config_limited_data", "config_section", "environment"),
    ("data", "networks", "losses", "pretext", "interaction", "evaluation"),
    ("quality", "selection"),
    ("trainers", "inference"),
    ("experiments", "reports", "review", "dataset_conversion", "doctor"),
    ("cli",),
)
"""Parts of the package from the bottom up: a part may import from its own layer and those before it."""
WITHOUT_NNUNET = ("losses", "quality", "selection", "pretext", "interaction", "evaluation")
LEVELS = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def modules(root: Path) -> Iterator[tuple[Path, str]]:
    """Each file and the name under which its module is installed."""
    for top, name in ((PACKAGE, PACKAGE), *((folder, f"{PACKAGE}.{folder}") for folder in NESTED)):
        for path in sorted((root / top).rglob("*.py")):
            below = path.relative_to(root / top).with_suffix("").parts
            yield path, ".".join((name, *below))


def imported(tree: ast.AST, module: str) -> Iterator[str]:
    """Full names of everything that a module imports; `from a import b` gives `a.b`, for b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                # For a package's own __init__, one dot is the package; its name here ends in ".__init__".
                parents = module.split(".")[: -node.level]
                base = ".".join((*parents, *([node.module] if node.module else [])))
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def part_of(name: str) -> str:
    """The part of the package that a full name belongs to; empty for the package itself."""
    pieces = name.split(".")
    return pieces[1] if len(pieces) > 1 and pieces[1] != "__init__" else ""


def violations(root: Path) -> list[str]:
    """What breaks the rules, one line each; names that are no part (`__version__`) belong to the package itself."""
    found = []
    pairs: dict[tuple[str, str], Path] = {}
    files = list(modules(root))
    parts = {part_of(module) for _, module in files}
    for path, module in files:
        part, place = part_of(module), path.relative_to(root)
        if part and part not in LEVELS:
            found.append(f"{place}: {part} has no place in LAYERS")
            continue
        for name in imported(ast.parse(path.read_text(encoding="utf-8")), module):
            if name.split(".")[0] == "nnunetv2" and part in WITHOUT_NNUNET:
                found.append(f"{place}: {part} must not import {name}")
            if name.split(".")[0] in NESTED:
                found.append(f"{place}: {name} is installed as {PACKAGE}.{name}")
            other = part_of(name)
            if name.split(".")[0] != PACKAGE or other not in (parts | set(LEVELS)) or other in ("", part):
                continue
            if LEVELS.get(other, 0) > LEVELS.get(part, 0):  # the package itself is at the bottom
                found.append(f"{place}: {part or PACKAGE} is below {other}")
            pairs[part, other] = place
    for (part, other), place in pairs.items():
        if part < other and (other, part) in pairs:
            found.append(f"{place}: {part} and {other} import each other")
    return found


def test_the_package_keeps_the_rules() -> None:
    assert violations(ROOT) == []


def test_the_checker_reads_the_whole_package() -> None:
    read = {module for _, module in modules(ROOT)}
    for module in ("nnunet_qa.errors", "nnunet_qa.cli.app", "nnunet_qa.data.paths", "nnunet_qa.quality.table"):
        assert module in read
    assert {"nnunet_qa.trainers.__init__", "nnunet_qa.dataset_conversion.__init__"} <= read
    app = ast.parse((ROOT / "nnunet_qa/cli/app.py").read_text())
    assert {"nnunet_qa.cli.env", "nnunet_qa.errors.NnunetQAError"} <= set(imported(app, "nnunet_qa.cli.app"))


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("nnunet_qa/data/a.py", "from nnunet_qa.quality import table", "data is below quality"),
        ("nnunet_qa/data/a.py", "from nnunet_qa import cli", "data is below cli"),
        ("nnunet_qa/data/a.py", "import nnunet_qa.inference.predictor as p", "data is below inference"),
        ("nnunet_qa/data/a.py", "from ..selection.rank import best", "data is below selection"),
        ("nnunet_qa/data/__init__.py", "from ..selection import rank", "data is below selection"),
        ("nnunet_qa/data/a.py", "def f():\n    from nnunet_qa.trainers import T", "data is below trainers"),
        ("nnunet_qa/data/a.py", "import importlib\nimportlib.import_module('nnunet_qa.cli.app')", "data is below cli"),
        ("nnunet_qa/errors.py", "if TYPE_CHECKING:\n    from nnunet_qa.data.paths import RAW", "errors is below data"),
        ("nnunet_qa/__init__.py", "from nnunet_qa.errors import E\nfrom .cli import app", "nnunet_qa is below cli"),
        ("nnunet_qa/doctor.py", "from nnunet_qa.cli import env", "doctor is below cli"),
        ("trainers/a.py", "from nnunet_qa.reports import figures", "trainers is below reports"),
        ("trainers/external/a.py", "from nnunet_qa.cli import app", "trainers is below cli"),
        ("dataset_conversion/a.py", "from nnunet_qa.cli.app import main", "dataset_conversion is below cli"),
        ("dataset_conversion/a.py", "from trainers import T", "trainers.T is installed as nnunet_qa.trainers.T"),
        ("nnunet_qa/strange/a.py", "", "strange has no place in LAYERS"),
        ("nnunet_qa/losses/a.py", "import nnunetv2", "losses must not import nnunetv2"),
        (
            "nnunet_qa/quality/a.py",
            "def f():\n    from nnunetv2.paths import x",
            "quality must not import nnunetv2.paths",
        ),
        ("nnunet_qa/selection/a.py", "import nnunetv2.paths as p", "selection must not import nnunetv2.paths"),
    ],
)
def test_the_checker_sees_a_planted_violation(tmp_path: Path, path: str, content: str, said: str) -> None:
    for folder in (PACKAGE, *NESTED):
        (tmp_path / folder).mkdir()
    planted = tmp_path / path
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(content)
    (line,) = violations(tmp_path)
    assert line.startswith(f"{path}: {said}")


def test_the_checker_sees_two_parts_that_import_each_other(tmp_path: Path) -> None:
    for part, other in (("quality", "selection"), ("selection", "quality")):
        (tmp_path / PACKAGE / part).mkdir(parents=True)
        (tmp_path / PACKAGE / part / "a.py").write_text(f"from nnunet_qa.{other} import b")
    assert violations(tmp_path) == ["nnunet_qa/quality/a.py: quality and selection import each other"]


def test_what_the_rules_allow(tmp_path: Path) -> None:
    allowed = {
        "nnunet_qa/data/a.py": "from nnunet_qa import __version__\nimport nnunetv2\nfrom nnunet_qa.networks import n",
        "nnunet_qa/quality/a.py": "from nnunet_qa.files import write\nfrom nnunet_qa.data.images import r",
        "nnunet_qa/cli/a.py": "from nnunet_qa.trainers import T\nfrom nnunet_qa.doctor import all_checks",
        "trainers/a.py": "from .b import c\nfrom nnunet_qa.quality.a import q\nimport nnunetv2, nnunetv2_more",
        "nnunet_qa/losses/a.py": "import nnunetv2_more",
    }
    for path, content in allowed.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    assert violations(tmp_path) == []
