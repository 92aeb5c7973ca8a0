"""The command `qcs`, and the other library of that name."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import qcs
import qcs_fer
from qcs import __main__ as command
from qcs.config.errors import UserError
from qcs.config.keys import CONF, choices, groups, keys

SOURCE = Path(qcs.__file__).parents[1]
MODULES = {path.stem for path in (SOURCE / "qcs").glob("*.py") if not path.stem.startswith("__")}
HEAVY = {"torch", "hydra", "omegaconf", "lightning", "numpy", "yaml", "importlib.metadata"}


def start(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/qcs", *arguments])
    command.main()


def python(code: str, *path: Path) -> subprocess.CompletedProcess:
    """Run code in a bare Python that finds packages in these folders first."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, SOURCE]))}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


def other(folder: Path, *, package: bool) -> Path:
    """The library of the package index, installed into a folder."""
    about = folder / "qcs-2.1.0.dist-info"
    about.mkdir(parents=True)
    about.joinpath("METADATA").write_text(
        "Metadata-Version: 2.1\nName: qcs\nVersion: 2.1.0\nSummary: Quantum programs.\n"
    )
    if package:
        folder.joinpath("qcs").mkdir()
        folder.joinpath("qcs/__init__.py").write_text("")
    return folder


def test_every_module_beside_the_rooms_is_a_command():
    assert set(command.COMMANDS) == MODULES


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_qcs_lists_its_commands(arguments, monkeypatch, capsys):
    start(monkeypatch, *arguments)
    lines = capsys.readouterr().out.splitlines()
    for name, about in command.COMMANDS.items():
        assert sum(line.split() == [name, *about.purpose.split()] for line in lines) == 1
    assert all(len(line) <= 80 for line in lines)


def test_help_ends_quietly_where_its_reader_has_seen_enough():
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; sys.argv = ['qcs', 'train', '--help']; import qcs_fer; qcs_fer.main()"
    env = os.environ | {"PYTHONPATH": str(SOURCE)}
    run = subprocess.run([sys.executable, "-c", code], env=env, stdout=writer, stderr=-1, text=True)
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, "")


def test_qcs_tells_its_version(monkeypatch, capsys):
    start(monkeypatch, "--version")
    assert capsys.readouterr().out == f"qcs-fer {qcs.__version__}\n"


@pytest.mark.parametrize("name", sorted(MODULES - set(command.OWN_PARSER)))
def test_help_explains_every_key_and_shows_two_examples(name, monkeypatch, capsys):
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "1000")
    start(monkeypatch, name, "--help")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert sum(line.startswith(f"qcs {name} ") for line in lines) == 2
    for key in keys(text):
        (line,) = [line for line in lines if line.split(" ")[0] == key.setting]
        assert key.comment and line.endswith(key.comment), key.setting
    for group in groups(text):
        assert any(line.startswith(group.setting) for line in lines)
        assert all(
            (CONF / group.name / f"{choice}.yaml").is_file() for choice in choices(group.name)
        )


def test_help_of_a_narrow_terminal_is_wrapped(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "70")
    start(monkeypatch, "train", "--help")
    rows = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("  qcs")]
    assert max(map(len, rows)) <= 70


def test_keys_are_read_with_their_comments():
    text = "# of the file\ndefaults:\n  - group: a # of the group\n\n# Said\n# above.\nkey: 1\n"
    text += "outer: # of both\n  _target_: a.b\n  inner: '#x' # of one\n  bare:\nhydra:\n  run: 1\n"
    assert [tuple(key) for key in keys(text)] == [
        ("key", "1", "Said above."),
        ("outer", "", "of both"),
        ("outer.inner", "'#x'", "of one"),
    ]
    assert [tuple(group) for group in groups(text)] == [("group", "a", "of the group")]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("trian", "did you mean `qcs train`?"),
        ("Predict", "did you mean `qcs predict`?"),
        ("figure", "did you mean `qcs figures`?"),
        ("xyz", "the commands are predict, "),
        ("", "the commands are predict, "),
    ],
)
def test_an_unknown_command_is_one_sentence(name, hint, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        start(monkeypatch, name, "ckpt=a.ckpt")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and repr(name) in said and hint in said


def test_a_command_starts_as_its_module_does(monkeypatch):
    """Lightning starts further processes of `__main__.__spec__` and `sys.argv`."""
    called = {}

    def run_module(name: str, **options: object) -> None:
        called.update(name=name, argv=sys.argv, **options)

    monkeypatch.setattr(runpy, "run_module", run_module)
    start(monkeypatch, "train", "seed=1", "--multirun")
    assert called == {
        "name": "qcs.train",
        "argv": ["/bin/qcs", "seed=1", "--multirun"],
        "run_name": "__main__",
        "alter_sys": True,
    }


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"]])
def test_help_imports_no_library(arguments):
    code = f"""
import json, sys
sys.argv = ["qcs", *{arguments}]
import qcs_fer
qcs_fer.main()
print(json.dumps(sorted(sys.modules)))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout.splitlines()[-1])
    assert not HEAVY & set(modules)
    assert len(modules) < 200  # a bare Python has 60, numpy alone brings 150


def test_another_library_in_the_place_of_ours_is_named(tmp_path):
    done = python("import qcs_fer; qcs_fer.main()", other(tmp_path, package=True))
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "qcs/__init__.py") in done.stderr and "pip uninstall qcs" in done.stderr


def test_code_of_the_users_own_is_found_where_the_command_starts(tmp_path, monkeypatch):
    started = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(runpy, "run_module", lambda *_, **__: started.append(sys.path[-1]))
    qcs_fer.main()
    assert started == [str(tmp_path)]


def test_another_library_beside_ours_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(other(tmp_path, package=False))
    with pytest.raises(UserError, match=r"qcs 2\.1\.0 \(Quantum programs\.\) is another library"):
        qcs.load("model.ckpt")
    with pytest.raises(SystemExit, match="^2$"):
        start(monkeypatch, "predict", "ckpt=model.ckpt")
    assert "pip uninstall qcs" in capsys.readouterr().err


def test_our_own_older_name_is_no_other_library(tmp_path, monkeypatch):
    about = other(tmp_path, package=False) / "qcs-2.1.0.dist-info/METADATA"
    about.write_text(about.read_text().replace("Quantum programs.", qcs_fer.SUMMARY))
    monkeypatch.syspath_prepend(tmp_path)
    assert qcs_fer.beside_ours() is None and qcs_fer.in_our_place() is None


def test_a_reader_that_has_seen_enough_is_no_error():
    code = "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1)\n"
    done = python(code + "sys.argv = ['qcs', 'train', '--help']; import qcs_fer; qcs_fer.main()")
    assert done.returncode == 0 and not done.stderr
