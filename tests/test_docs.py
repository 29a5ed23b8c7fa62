"""Documents that cannot lie: every Python block of the README and the docs runs."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import octavo

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(
        block,
        id=f"{page.stem}-{number}",
        marks=[] if page.name == "README.md" else pytest.mark.slow,
    )
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    )
]


def test_there_are_blocks_to_run() -> None:
    assert len(BLOCKS) >= 4


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("block", BLOCKS)
def test_a_python_block_runs(
    block: str, smol: octavo.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load: Any = octavo.load
    monkeypatch.setattr(octavo, "load", lambda *a, **k: load(*a, **k) if a or k else smol)
    chapter = (ROOT / "examples" / "king-solomons-mines-14.txt").read_text(encoding="utf-8")
    (tmp_path / "examples").mkdir()
    for name in ("book.txt", "examples/king-solomons-mines-14.txt"):
        (tmp_path / name).write_text(chapter[:1500], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "block", "exec"), {"__name__": "__main__"})


def test_links_between_documents_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_scripts_and_documents_that_are_named_anywhere_are_there() -> None:
    named = re.compile(r"(?<![\w/])(?:docs|runs|scripts|benchmarks)/[\w/-]+\.(?:md|sh|py|toml)")
    files = [*PAGES, *(ROOT / "benchmarks").glob("*.md")]
    files += [
        path for folder in ("src", "benchmarks", "runs") for path in ROOT.glob(f"{folder}/**/*.py")
    ]
    files += [*ROOT.glob("runs/*.sh"), *ROOT.glob("scripts/*")]
    found = {
        name: file.name
        for file in files
        if file.is_file()
        for name in named.findall(file.read_text(encoding="utf-8"))
        if "/synthetic/" not in name  # RULER's own files, which ours follow
    }
    assert len(found) > 30
    assert {name: file for name, file in found.items() if not (ROOT / name).is_file()} == {}


def test_the_picture_of_the_rooms_is_the_rule_that_is_tested() -> None:
    draw = runpy.run_path(str(ROOT / "scripts" / "write-architecture"))
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert draw["render"](page) == page, "run scripts/write-architecture"
    assert "nn --> config" in page


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 110
