"""What pyproject.toml, the constraint files and the messages say of the package is true."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import qcs

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DISTRIBUTIONS = {  # where it is not the name that is imported
    "PIL": "pillow",
    "hydra": "hydra-core",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "typing_extensions": "typing-extensions",
    "annotated_types": "annotated-types",
    "yaml": "pyyaml",
    "pillow_heif": "pillow-heif",
}


def requirements(lines: list[str]) -> dict[str, Requirement]:
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text(encoding="utf-8").split()
    found = requirements([line for line in lines if not line.startswith("#")])
    return {
        name: str(requirement.specifier).removeprefix("==") for name, requirement in found.items()
    }


BASE = requirements(PROJECT["dependencies"])
ALL = requirements(
    [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
)
DIRECT = {name: requirement for name, requirement in ALL.items() if name != PROJECT["name"]}


def imported(nodes: list[ast.stmt]) -> set[str]:
    """The distributions of other people that these statements import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    tops = {name.partition(".")[0] for name in names} - {"qcs", "qcs_fer", "hydra_plugins"}
    return {DISTRIBUTIONS.get(name, name) for name in tops - sys.stdlib_module_names}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT / "src").as_posix())
def test_every_import_is_declared(path):
    """What a module imports as it is loaded is required, the rest at least in an extra."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    assert imported(module.body) <= set(BASE)
    assert imported(list(ast.walk(module))) <= set(ALL)


def test_every_declared_package_has_a_floor_that_is_tested():
    floors = {name: str(r.specifier).removeprefix(">=") for name, r in DIRECT.items()}
    assert pins("constraints-lowest.txt") == floors


def test_the_tested_versions_are_allowed():
    tested = pins("constraints.txt")
    optional = {canonicalize_name(Requirement(line).name) for line in EXTRAS["slurm"]}
    for name, requirement in DIRECT.items():
        assert name in optional or requirement.specifier.contains(tested[name]), name


def test_an_extra_names_the_own_distribution():
    """`qcs` on the package index is another library."""
    assert "qcs" not in ALL and PROJECT["name"] in ALL
    for path in [
        *SOURCES,
        *ROOT.glob("conf/**/*.yaml"),
        *ROOT.glob("scripts/*.*"),
        ROOT / "Makefile",
    ]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pip install '?qcs\b|qcs\[[a-z]", text), path


def test_hints_name_an_extra_that_exists():
    calls = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    named = re.findall(r"missing_extra\(\s*\"(\w+)\"", calls)
    assert named and set(named) <= set(EXTRAS)


def test_the_version_has_one_home():
    assert "version" in PROJECT["dynamic"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {qcs.__version__}\n" in citation
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{qcs.__version__}]" in changes
