"""Who may import whom (shared rules of the rooms), where the heavy libraries live, and no ring."""

import ast
import importlib
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from PIL import Image

from conftest import tiny_checkpoint

SOURCE = Path(__file__).parents[1] / "src"


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}
ROOMS = {path.name for path in (SOURCE / "qcs").iterdir() if (path / "__init__.py").is_file()}
COMMANDS = {name for name in MODULES if name.count(".") == 1 and name.split(".")[1] not in ROOMS}

# Pure modules that every room may import. They import none of ours but each other.
PURE = {
    f"qcs.config.{name}"
    for name in ("bounds", "errors", "escape", "hints", "keys", "threads", "version")
}
BELOW = {
    "config": {"qcs_fer"},
    "models": set(),
    "data": set(),
    "plots": set(),
    "search": {"config", "plots"},
    "checkpoints": {"config", "models", "data"},
    "evaluation": {"checkpoints", "config", "models", "data", "plots"},
}
LOWER = set(BELOW) - {"search"}
BELOW |= {
    "training": LOWER | {"search"},
    "inference": LOWER,
    "hydra_plugins": {"search"},
    "qcs": {"inference", "checkpoints", "evaluation", "qcs_fer"},
    "qcs_fer": set(),
}
LIGHTNING = {"qcs.train", "qcs.data.datamodule", "qcs.checkpoints.files", "qcs.search.pruning"}
LAZY = {"matplotlib", "gradio", "onnx", "onnxruntime", "optuna", "wandb", "ray", "av", "sklearn"}
LAZY |= {"torchao", "tensorboard", "skimage", "fastapi", "uvicorn", "trackers", "supervision"}
# Rooms that are themselves imported only where they are used.
EAGER = {"matplotlib": "qcs.plots.", "optuna": "qcs.search."}


def room(module: str) -> str:
    parts = module.split(".")
    if module in COMMANDS:
        return "command"
    return parts[1] if parts[0] == "qcs" and len(parts) > 1 else parts[0]


def imported(nodes: list[ast.AST]) -> set[str]:
    """The modules that some statements import; `from package import module` names the module."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = {f"{node.module}.{alias.name}": node.module for alias in node.names}
            found |= {name if name in MODULES else module for name, module in names.items()}
    return found


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
# With imports inside of functions, and with those for type checkers alone.
IMPORTS = {name: imported(list(ast.walk(tree))) for name, tree in TREES.items()}
OURS = {name: found & set(MODULES) for name, found in IMPORTS.items()}


def at_import(tree: ast.Module) -> list[ast.AST]:
    """The statements that run when a module is imported, so none in functions."""
    waiting, found = list(tree.body), []
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        found.append(node)
        waiting += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_only_what_is_below(module):
    here = room(module)
    for other in OURS[module] - PURE:
        there = room(other)
        assert there != "command", f"{module} imports the command {other}"
        allowed = here in ("command", there) or there in BELOW[here]
        assert allowed, f"{module} imports {other}, and {here} may not import {there}"


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_import_each_other_alone(module):
    assert OURS[module] <= PURE
    assert not {name.split(".")[0] for name in IMPORTS[module]} & {"torch", "hydra", "omegaconf"}


def test_there_is_no_ring():
    try:
        order = list(TopologicalSorter(OURS).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other in a ring: {' <- '.join(error.args[1])}")
    assert set(order) == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_frameworks_stay_in_their_rooms(module):
    here, tops = room(module), {name.split(".")[0] for name in IMPORTS[module]}
    assert "lightning" not in tops or here == "training" or module in LIGHTNING
    hydra = ("config", "search", "hydra_plugins", "command")
    assert not tops & {"hydra", "omegaconf"} or here in hydra


@pytest.mark.parametrize("module", MODULES)
def test_optional_and_heavy_libraries_are_imported_where_they_are_used(module):
    tops = {name.split(".")[0] for name in imported(at_import(TREES[module]))}
    for library in tops & LAZY:
        assert module.startswith(EAGER.get(library, "nothing")), f"{module} imports {library}"


def loaded(code: str, *arguments: str) -> set[str]:
    """The libraries that are loaded after some code has run in a Python of its own."""
    code += "\nimport sys\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n{code}"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())  # after what the code itself has printed


def test_using_a_checkpoint_loads_neither_lightning_nor_hydra(tmp_path):
    """In a process of its own, in which every socket is an error."""
    path = tiny_checkpoint(tmp_path / "model.ckpt")
    code = (
        "import socket\n"
        "def closed(*args, **options): raise RuntimeError('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = closed\n"
        "import numpy, qcs, sys\n"
        "image = numpy.zeros((20, 20, 3), numpy.uint8)\n"
        "qcs.load(sys.argv[1]).predict(image, detect=False)"
    )
    found = loaded(code, str(path))
    unwanted = {"lightning", "lightning_fabric", "pytorch_lightning", "hydra", "omegaconf"} | LAZY
    assert "torch" in found
    # Where they are installed, timm imports wandb, and torchvision 0.23 av.
    assert not found & (unwanted - {"wandb", "av"})


HEAVY = {"torch", "torchvision", "timm", "lightning", "pandas", "scipy", "sympy"}
HEAVY |= LAZY - {"onnx", "onnxruntime"}


@pytest.mark.parametrize("options", ["", "'ferplus-light', detect=True", "'ferplus-light.onnx'"])
def test_the_networks_of_the_zoo_are_used_without_pytorch(options):
    code = (
        "import numpy, qcs\n"
        "def use(path=None, detect=False):\n"
        "    image = numpy.zeros((64, 64, 3), numpy.uint8)\n"
        "    qcs.load(path).predict(image, detect=detect)\n"
        f"use({options})"
    )
    found = loaded(code)
    assert {"onnxruntime", "numpy", "PIL"} <= found
    assert not found & (HEAVY | {"hydra", "omegaconf"})


def test_the_command_answers_without_pytorch(tmp_path):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64)).save(photo)
    code = "sys.argv[0] = 'qcs'\nfrom qcs import __main__\n__main__.main()"
    found = loaded(code, "predict", str(photo), f"hydra.run.dir={tmp_path / 'run'}")
    assert {"onnxruntime", "hydra"} <= found and not found & HEAVY
    assert (tmp_path / "run/predictions.jsonl").read_text().count("no face found") == 1


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"torch", "numpy", "lightning", "hydra", "omegaconf"} | LAZY
    assert not loaded("import qcs") & heavy


@pytest.mark.parametrize(
    "script", sorted((SOURCE.parent / "scripts").rglob("*.py")), ids=lambda path: path.name
)
def test_what_scripts_import_is_there(script):
    """Most scripts take too long for a test of their own."""
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "qcs":
            module = importlib.import_module(node.module)
            for name in node.names:
                below = MODULES.get(f"{node.module}.{name.name}")
                assert below or hasattr(module, name.name), f"{node.module} has no {name.name}"
