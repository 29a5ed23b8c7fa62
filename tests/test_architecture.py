"""The rules of the tree, checked: who imports whom, how long files are, how light an import is."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import octavo

SOURCE = Path(octavo.__file__).parent
MAX_LINES = 400
MAX_FILES = 125
"""The house budget is 40 for the whole product. The command line is a package of short files here,
answers, loading and assembly stand apart from Model, and a trainer that packs, shards and resumes
has a file per concern and one per kind of example; the evaluation has one per family of tasks, and
its report and bench are packages: more files, none of them long."""

# Each unit may import these units of octavo, and itself.
CORE = {"errors", "config"}
TENSORS = CORE | {"files", "base", "prompt", "context", "nn", "assembly", "checkpoint"}
MODEL = TENSORS | {"engine", "text", "answer", "model", "loading"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "files": {"errors"},
    "dataset": {"errors"},
    "base": {"errors", "files"},
    "prompt": CORE,
    "context": CORE | {"files"},
    "nn": CORE,
    "text": set(),
    "assembly": CORE | {"base", "nn"},
    "checkpoint": CORE | {"files", "base", "assembly", "nn", "prompt"},
    "engine": CORE | {"context", "prompt", "checkpoint"},
    "answer": CORE | {"context", "engine", "prompt", "text"},
    "model": CORE | {"answer", "context", "engine", "prompt", "checkpoint"},
    "loading": MODEL,
    "train": TENSORS | {"dataset"},
    "evals": (MODEL - {"loading"}) | {"dataset", "__init__"},
    "cli": MODEL | {"dataset", "train", "evals", "__init__"},
    "__init__": set(),  # lazily, by name
    "__main__": {"cli"},
}
# Libraries, and where alone they may be imported: a unit, a folder or a file.
FENCED = {
    "peft": {"assembly", "checkpoint"},
    "gguf": {"base"},
    "huggingface_hub": {"checkpoint", "cli"},
    "typer": {"cli"},
    "rich": {"cli"},
    "zstandard": {"dataset"},
    "pyarrow": {"dataset"},
    "datasets": {"dataset"},
    "tensorboard": {"train"},
    "kvpress": {"evals/kvpress.py"},
    "lm_eval": {"evals/lm_eval.py"},
    "bm25s": {"evals/methods"},
    "llmlingua": {"evals/methods"},
    "matplotlib": {"evals/report"},
    "wonderwords": {"evals/tasks"},
    "rouge": {"evals/metrics.py"},
    "jieba": {"evals/metrics.py"},
    "rapidfuzz": {"evals/metrics.py"},
}
CORE_LIBRARIES = {"peft", "gguf", "huggingface_hub", "typer", "rich"}
FILES = sorted(SOURCE.rglob("*.py"))


def unit_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    """Yield every module a file imports when it runs; names for type checkers only are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module or ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_imports_only_what_its_place_allows(path: Path) -> None:
    unit = unit_of(path)
    for module in imports_of(path):
        first, *rest = module.split(".")
        if first == "octavo":
            wanted = rest[0] if rest else "__init__"
            assert wanted == unit or wanted in MAY_IMPORT[unit], f"{unit} imports {module}"
        elif first in FENCED:
            place = path.relative_to(SOURCE).as_posix()
            assert any(
                unit == where or place == where or place.startswith(f"{where}/")
                for where in FENCED[first]
            ), f"{place} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_is_short_and_opens_with_a_sentence(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    opening = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    assert opening.rstrip().endswith((".", ":")), f"{path} opens with {opening!r}"


def test_the_tree_is_small_and_typed() -> None:
    assert len(FILES) <= MAX_FILES
    assert (SOURCE / "py.typed").is_file()


def test_nothing_unpickles_or_prints() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "pickle.load", "pickle.loads"), path
                if called == "torch.load":
                    assert "weights_only=True" in ast.unparse(node), path


@pytest.mark.parametrize(
    "command", ["import octavo", "from octavo.cli import main; main(['--help'])"]
)
def test_the_door_is_light(command: str) -> None:
    code = (
        "import sys\n"
        "try:\n"
        f"    exec({command!r})\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'peft'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_every_module_imports_with_the_core_dependencies_alone() -> None:
    extras = ["pytest", "mypy", *(set(FENCED) - CORE_LIBRARIES)]
    modules = [
        "octavo." + ".".join(p.relative_to(SOURCE).with_suffix("").parts)
        for p in FILES
        if p.name not in ("__init__.py", "__main__.py")
    ]
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({extras!r}))\n"  # None: cannot be imported
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_the_promised_ones_and_all_exist() -> None:
    for name in octavo.__all__:
        assert getattr(octavo, name).__doc__ or name == "CHAT"
    assert sorted(octavo._HOME_OF) == sorted(octavo.__all__)
    with pytest.raises(AttributeError, match="its names are"):
        _ = octavo.no_such_name


def test_every_error_is_public_and_raised_somewhere() -> None:
    from octavo import errors

    source = "\n".join(path.read_text(encoding="utf-8") for path in FILES)
    tests = "\n".join(
        p.read_text(encoding="utf-8") for p in Path(__file__).parent.glob("test_*.py")
    )
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, Exception) and name != "OctavoError":
            assert name in octavo.__all__
            assert name in source.replace(f"class {name}", ""), f"nothing raises {name}"
            assert name in tests, f"no test raises {name}"
