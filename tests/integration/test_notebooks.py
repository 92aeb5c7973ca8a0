"""The notebooks run from top to bottom, on small data."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
import skimage.data
from nbclient import NotebookClient
from PIL import Image
from test_train import SMALL, qcs

from qcs.data.sources import synthetic

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Drawn faces, a trained run, and raw photos of two classes."""
    top = tmp_path_factory.mktemp("notebooks")
    synthetic.make(top / "faces", size=32, train=8, val=2, test=2, workers=1)
    given = [*SMALL, f"dataset.path={top / 'faces'}", "trainer.max_epochs=1", "test=false"]
    qcs("train", *given, "callbacks.dashboard=null", "hydra.run.dir=run", cwd=top)
    photo = Image.fromarray(skimage.data.astronaut())
    for number in range(10):
        for name, light in {"bright": 1.25, "dark": 0.5}.items():
            (top / "photos" / name).mkdir(parents=True, exist_ok=True)
            turned = photo.rotate(3 * number - 15, Image.Resampling.BICUBIC).crop((60, 0, 400, 300))
            pixels = (np.asarray(turned) * light).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(top / "photos" / name / f"{number}.jpg")
    (top / "photos/dark/broken.jpg").write_text("no")
    return top


def run(name: str, folder: Path, **parameters) -> list:
    """Execute a notebook with other parameters; the outputs of its cells, as one text each."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    assert all(f"{key} = " in cell.source for key in parameters), "not a parameter"
    cell.source += "\n" + "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute()
    return [output for c in notebook.cells for output in c.get("outputs", ())]


def pictures(outputs: list) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


def text(outputs: list) -> str:
    return " ".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
        for output in outputs
    )


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The notebook's own processes find the package and take one thread."""
    import qcs as package

    monkeypatch.setenv("PYTHONPATH", str(Path(package.__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_quadruplets(folder):
    outputs = run("quadruplets", folder, path=str(folder / "faces"))
    assert pictures(outputs) == 2
    assert "'Surprise': 8" in text(outputs) and "torch.Size([4, 4, 3, 64, 64])" in text(outputs)


def test_attention(folder):
    outputs = run("attention", folder, ckpt="run/checkpoints/best.ckpt", path=str(folder / "faces"))
    assert pictures(outputs) == 2 and "4 roles" in text(outputs)


def test_own_photos(folder):
    outputs = run(
        "own_photos", folder, epochs=1,
        options=["experiment=finetune", "loader.num_workers=0", "callbacks.dashboard=null"],
    )  # fmt: skip
    said = text(outputs)
    assert "broken.jpg" in said and "'images': 4" in said and pictures(outputs) == 3
    assert "0.jpg [('" in said
    assert (folder / "runs/own/training/checkpoints/best.ckpt").is_file()


def test_notebooks_are_stored_without_outputs():
    files = sorted(NOTEBOOKS.glob("*.ipynb"))
    assert len(files) == 3
    for file in files:
        cells = nbformat.read(file, as_version=4).cells
        assert not any(c.get("outputs") or c.get("execution_count") for c in cells)
