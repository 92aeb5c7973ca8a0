"""Write the page of all configuration keys from the files in conf/, when the site is built.

An mkdocs hook (mkdocs.yml names it). A key's explanation is its comment in the file, so that there
is one place to write it.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

CONF = Path(__file__).parents[1] / "conf"
PAGE = "reference/configuration.md"
COMMANDS = ("train", "eval", "predict", "check", "prepare", "export", "figures", "demo")
KEY = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?: (?P<value>.*?))?(?:\s+# (?P<comment>.*))?$")
INTRODUCTION = """# Configuration

Every key below can be set on the command line, for instance
`qcs train loader.batch_size=16 sam.rho=0.05`, and each group chooses one of its files, for
instance `qcs train model=dcs`. This page is generated from the files in `conf/`.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the site."""
    files.append(File.generated(config, PAGE, content=page()))
    return files


def page() -> str:
    """Return the page: a table of keys for each command, then the files of each group."""
    parts = [INTRODUCTION]
    for name in COMMANDS:
        parts += [f"## qcs {name}", table((CONF / f"{name}.yaml").read_text(encoding="utf-8"))]
    for folder in sorted(d for d in CONF.iterdir() if d.is_dir()):
        files = sorted(folder.rglob("*.yaml"))
        if not any(f.read_text(encoding="utf-8").strip() for f in files):
            continue
        parts.append(f"## The group {folder.name}")
        for file in files:
            choice = file.relative_to(folder).with_suffix("").as_posix()
            parts += [f"### {folder.name}={choice}", table(file.read_text(encoding="utf-8"))]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(text: str) -> str:
    """Turn one file into its opening comment and a table of key, value and comment."""
    lines = text.splitlines()
    opening = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    opening = [line for line in opening if not line.startswith("@package")]
    rows, path, skipped = [], [], None
    for line in lines:
        match = KEY.match(line)
        if not match:
            continue
        depth = len(match["indent"]) // 2
        path = [*path[:depth], match["key"]]
        if depth == 0:
            skipped = match["key"] if match["key"] in ("defaults", "hydra") else None
        if skipped or match["key"].startswith("_"):
            continue
        value = match["value"] or ""
        rows.append(f"| `{'.'.join(path)}` | {_code(value)} | {_cell(match['comment'])} |")
    head = "| key | default | meaning |\n|---|---|---|\n"
    return "\n\n".join(
        part for part in (_paragraph(opening), head + "\n".join(rows) if rows else "") if part
    )


def _paragraph(opening: list[str]) -> str:
    commands = [line for line in opening if line.startswith(("python ", "qcs ", "cp "))]
    words = " ".join(line for line in opening if line not in commands)
    code = "```\n" + "\n".join(commands) + "\n```" if commands else ""
    return "\n\n".join(part for part in (code, _cell(words)) if part)


def _code(value: str) -> str:
    value = value.strip().replace("|", "\\|")
    return f"`{value}`" if value else ""


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
