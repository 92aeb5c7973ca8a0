"""The documentation is true: its commands compose, its examples work, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from test_options import config
from test_train import SMALL, qcs

from qcs.config.overrides import with_key
from qcs.data.sources import synthetic

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*/*.md")), ROOT / "docs/index.md"]
BLOCK = re.compile(
    r"^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```", re.M | re.S
)
COMPOSED = ("train", "eval", "predict", "check", "prepare", "export", "figures", "demo")


def commands() -> list[str]:
    """Each `qcs COMMAND ...` of the documentation once, without its comment."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = [re.sub(r"\\\n\s*", " ", block["text"]) for block in BLOCK.finditer(text)]
        lines = [line for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`((?:qcs|python -m qcs\.)[^`]+)`", text)
        for line in lines:
            line = line.split("  #")[0].strip().replace("python -m qcs.", "qcs ")
            line = line.replace("OMP_NUM_THREADS=1 ", "")
            if re.match(r"qcs (" + "|".join(COMPOSED) + r")\b", line):
                found.append(line)
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_every_command_composes(command, tmp_path):
    name, *arguments = shlex.split(command)[1:]
    if "--config-dir" in arguments or "mine." in command:
        pytest.skip("it uses the example package, which another test trains with")
    arguments = [a for a in arguments if a not in ("-m", "--help") and not a.startswith("hydra")]
    if name == "predict":
        arguments = with_key(arguments, name, "input")
    parser = OverridesParser.create()
    given = []
    for override in parser.parse_overrides(arguments):
        key = override.get_key_element()
        if override.is_choice_sweep():
            given.append(f"{key}={next(iter(override.sweep_string_iterator()))}")
        elif not override.is_sweep_override():
            given.append(override.input_line)
    config(tmp_path, *given, name=name)


def test_the_first_lines_of_the_readme_work_in_a_fresh_clone(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    blocks = BLOCK.finditer((ROOT / "README.md").read_text(encoding="utf-8"))
    (code,) = (block["text"] for block in blocks if block["language"] == "python")
    exec(code, {})
    assert capsys.readouterr().out == code.splitlines()[-1].partition("# ")[2] + "\n"


def test_the_example_package_trains_and_loads_again(tmp_path, monkeypatch):
    text = (ROOT / "docs/how-to/extend.md").read_text(encoding="utf-8")
    parts = {"mine.py": []}
    for block in BLOCK.finditer(text):
        if block["title"]:
            parts.setdefault(block["title"], []).append(block["text"])
    for name, texts in parts.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(texts), encoding="utf-8")
    small = [s for s in SMALL if not s.startswith("backbone.")]
    synthetic.make(tmp_path / "faces", size=32, train=2, val=1, test=1, workers=1)
    data, trust = f"dataset.path={tmp_path / 'faces'}", "trust=[mine.TinyBackbone]"
    own = ["--config-dir", "my_conf", "backbone=tiny", "loss=focal", "augment=noisy", data]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    own += [trust, "trainer.max_epochs=1", "scheduler=none", "test=false"]
    qcs("train", *own, *small, "hydra.run.dir=run", cwd=tmp_path)
    ckpt = "ckpt=run/checkpoints/best.ckpt"
    qcs("eval", ckpt, data, trust, "hydra.run.dir=eval", "num_workers=0", cwd=tmp_path)
    done = qcs("eval", ckpt, data, "hydra.run.dir=again", "num_workers=0", cwd=tmp_path, ok=False)
    assert "trust=[mine.TinyBackbone]" in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_import_in_an_example_works(page):
    blocks = BLOCK.finditer(page.read_text(encoding="utf-8"))
    code = "\n".join(block["text"] for block in blocks if block["language"] == "python")
    lines = [line for line in code.splitlines() if re.match(r"(from|import) +qcs", line)]
    exec("\n".join(lines), {})


def test_every_file_that_contributing_names_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for row in re.findall(r"^\| `([a-z]+/)` \| (.+) \|$", text, re.M):
        for file in re.findall(r"`(\w+\.py|\w+/)`", row[1]):
            assert (ROOT / "src/qcs" / row[0] / file).exists(), f"{row[0]}{file}"
    for file in re.findall(r"`((?:src|tests|conf|scripts)/[\w/.]+)`", text):
        if "NAME" not in file:
            assert (ROOT / file).exists(), file


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        generated = target.endswith("reference/configuration.md")
        if "://" not in target and not generated:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
