"""Who may import whom (LAYOUT): torch code knows neither Lightning nor Hydra."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "qcs"
PLAIN = [
    *(f for room in ("models", "plots") for f in SOURCE.glob(f"{room}/**/*.py")),
    *(f for f in SOURCE.glob("data/**/*.py") if f.name != "datamodule.py"),
    *(f for f in SOURCE.glob("checkpoints/**/*.py") if f.name not in ("files.py", "load.py")),
    *SOURCE.glob("evaluation/*.py"),
    *(SOURCE / f"training/{name}.py" for name in ("losses", "sam")),
    *(SOURCE / f"inference/{name}.py" for name in ("detector", "crops", "backends")),
    SOURCE / "config/errors.py",
]
ENTRIES = {"qcs.train", "qcs.eval", "qcs.prepare", "qcs.check", "qcs.convert", "qcs.zoo"} | {
    f"qcs.{name}" for name in ("predict", "export", "demo", "figures")
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", PLAIN, ids=lambda p: p.stem)
def test_plain_code_knows_no_framework(path):
    tops = {name.split(".")[0] for name in imports(path)}
    assert not tops & {"lightning", "hydra", "omegaconf"}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.stem)
def test_nothing_imports_an_entry_point(path):
    assert not imports(path) & ENTRIES


def test_data_imports_no_models():
    for path in SOURCE.glob("data/**/*.py"):
        assert not any(name.startswith("qcs.models") for name in imports(path))
