"""The rules of the tree, checked: who imports whom, how large rooms are, how light an import is."""

import ast
import functools
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import octavo

PACKAGE = Path(octavo.__file__).parent
SOURCE = PACKAGE.parent
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
MAX_FOLDER_FILES = 14
CLI_FUNCTIONS = {
    *("agent", "ask", "bench", "compress", "evaluate", "serve", "make_server"),
}
"""Verbs whose options alone fill a page: each is an argument with its help."""

# Each room may import these rooms, itself, and what those may import.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "text": {"config"},
    "template": {"errors"},
    "progress": set(),
    "settings": {"errors"},
    "config": {"errors"},
    "files": {"errors"},
    "records": {"errors"},
    "machine": {"errors"},
    "statistics": {"errors"},
    "prompt": {"config", "template", "text"},
    "context": {"config", "files", "text"},
    "nn": {"config"},
    "costs": {"nn"},
    "weights": {"nn", "prompt", "files", "machine", "progress"},
    "engine": {"weights", "context"},
    "generate": {"engine", "prompt", "context", "text", "completion"},
    "home": {"errors"},
    "ask": {"files", "confidence"},
    "ingest": {"errors"},
    "store": {"ask", "ingest", "home", "context", "text"},
    "completion": {"ask"},
    "sections": {"errors"},
    "fallback": {"completion", "prompt"},
    "expand": set(),
    "model": {"generate", "confidence", "fallback"},
    "confidence": {"files", "home"},
    "density": {"prompt"},
    "session": {"model", "density"},
    "agent": {"model", "expand", "ask", "confidence"},
    "loading": {"model", "machine"},
    "recipe": {"config", "sections"},
    "data": {"recipe", "records", "prompt", "files", "weights", "settings", "ask", "expand"},
    "train": {"data", "costs", "machine", "weights", "statistics"},
    "search": {"train"},
    "serve": {"loading", "store", "ask", "ingest", "home", "agent"},
    "cli": {"loading", "train", "search", "session", "agent", "store", "serve"},
    "octavo_evals": {"loading", "costs", "records", "cli"},
    "octavo_vllm": {"generate", "weights"},
    "__init__": set(),  # lazily, by name
    "__main__": {"cli"},
}
BUDGETS = {
    # Chats, contexts, files, responses; keys and limits; two backends; a queue; 220 are the agent
    # as a model, and thoughts apart from answers.
    "serve": 3670,
    "ask": 900,
    "ingest": 450,
    "store": 1250,
    "agent": 1300,
    "session": 230,
    "density": 110,
    "confidence": 210,
    "fallback": 90,
    "expand": 140,
    # 640 are the self-check of any decoder, 600 templates that know who wrote what, 90 the blocks
    # of a step folded at once, 300 how what a conversation read is kept, 60 one table for both
    # halves and the bytes of a token, 80 a lock that lets answers go on beside long texts.
    "core": 8040,
    # 550 are everyday documents made up, 230 bring rows from other processes: a GPU waits for them.
    "data + train": 5800,
    # 8 make a termination end the runs too, as Ctrl-C does; 25 tell many variants apart.
    "search": 700,
    "cli": 2420,
    "octavo_evals": 6650,
    "octavo_vllm": 870,
}
# Libraries, and where alone they may be imported: a room, or a folder or file of one.
FENCED = {
    "fastapi": {"serve"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "pydantic": {"serve"},
    "prometheus_client": {"serve"},
    "cryptography": {"serve"},
    "httpx": {"serve"},
    "mcp": {"serve/mcp.py"},
    "peft": {"weights"},
    "gguf": {"weights/base.py"},
    "huggingface_hub": {"weights/layout.py", "cli"},
    "typer": {"cli", "octavo_evals/cli"},
    "rich": {"cli"},
    "zstandard": {"records", "serve"},
    "pyarrow": {"records"},
    "datasets": {"records"},
    "tensorboard": {"train"},
    "vllm": {"octavo_vllm"},
    "kvpress": {"octavo_evals/harness/kvpress.py"},
    "lm_eval": {"octavo_evals/harness/lm_eval.py"},
    "bm25s": {"ask"},
    "Stemmer": {"ask"},
    "regex": {"ask"},
    "pypdfium2": {"ingest/readers.py"},
    "trafilatura": {"ingest/readers.py"},
    "mammoth": {"ingest/readers.py"},
    "llmlingua": {"octavo_evals/methods"},
    "matplotlib": {"octavo_evals/report", "search/pictures.py"},
    "pandas": {"octavo_evals/report"},
    "jinja2": {"template", "octavo_evals/report"},
    "adjustText": {"octavo_evals/report"},
    "wonderwords": {"octavo_evals/tasks"},
    "rouge": {"octavo_evals/metrics.py"},
    "jieba": {"octavo_evals/metrics.py"},
    "rapidfuzz": {"octavo_evals/metrics.py"},
}
CORE_LIBRARIES = {
    "peft", "gguf", "huggingface_hub", "typer", "rich", "jinja2", "bm25s", "Stemmer", "regex",
}  # fmt: skip
PACKAGES = ("octavo", "octavo_evals", "octavo_vllm")
FILES = sorted(path for package in PACKAGES for path in (SOURCE / package).rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room_of(path: Path) -> str:
    package, *rest = path.relative_to(SOURCE).parts
    return rest[0].removesuffix(".py") if package == "octavo" else package


def room_of_module(module: str) -> str | None:
    package, *rest = module.split(".")
    if package == "octavo":
        return rest[0] if rest else "__init__"
    return package if package in PACKAGES else None


def allowed(room: str) -> set[str]:
    """Return every room that a room may import."""
    found: set[str] = set()
    waiting = {room}
    while waiting:
        now = waiting.pop()
        found.add(now)
        waiting |= ARROWS[now] - found
    return found | {"errors"}


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, *, with_names: bool = False) -> Iterator[str]:
    """Yield every module a file imports when it runs; names for type checkers only are left out.

    With `with_names`, imports inside functions are left out too, and `from a import b` also yields
    `a.b`, which may be a module.
    """
    tree = tree_of(path)
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    if with_names:
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        skipped |= {id(inner) for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            if with_names:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module or ""


def of_files(test: Any) -> Any:
    return pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))(test)


@of_files
def test_a_file_imports_only_what_its_room_allows(path: Path) -> None:
    room = room_of(path)
    place = path.relative_to(SOURCE).as_posix().removeprefix("octavo/")
    for module in imports_of(path):
        wanted = room_of_module(module)
        if wanted is not None:
            is_name = wanted == "__init__" and room in (
                "cli",
                "octavo_evals",
                "serve",
            )  # octavo.__version__
            assert wanted in allowed(room) or is_name, f"{room} imports {module}"
        elif (library := module.split(".")[0]) in FENCED:
            assert any(
                where in (room, place) or place.startswith(f"{where}/") for where in FENCED[library]
            ), f"{place} imports {module}"


def test_no_two_rooms_import_each_other() -> None:
    for room in ARROWS:
        assert room not in {far for near in ARROWS[room] for far in allowed(near)}, room


def test_no_files_import_each_other_in_a_circle() -> None:
    known = {module_of(path): path for path in FILES}
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        named = set(imports_of(path, with_names=True))
        edges[name] = {module for module in named if module in known and module != name}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for other in sorted(edges[name]):
                walk(other, (*trail, name))
            done.add(name)

    for name in edges:
        walk(name, ())


def test_every_room_keeps_its_budget() -> None:
    lines: Counter[str] = Counter()
    for path in FILES:
        room = room_of(path)
        named = dict.fromkeys(("data", "train", "recipe", "sections"), "data + train")
        counted = named.get(room, room if room in BUDGETS else "core")
        lines[counted] += len(path.read_text(encoding="utf-8").splitlines())
    assert {room: n for room, n in lines.items() if n > BUDGETS[room]} == {}


def test_folders_hold_few_files() -> None:
    counts = Counter(path.parent.relative_to(SOURCE).as_posix() for path in FILES)
    del counts["octavo"]  # the front doors, with a folder for every room
    assert {folder: n for folder, n in counts.items() if n > MAX_FOLDER_FILES + 1} == {}


@of_files
def test_a_file_opens_with_a_sentence_and_it_and_its_functions_are_short(path: Path) -> None:
    tree = tree_of(path)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES, path
    opening = (ast.get_docstring(tree) or "").split("\n\n")[0]
    assert opening.rstrip().endswith((".", ":")), f"{path} opens with {opening!r}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name not in CLI_FUNCTIONS:
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


def test_a_class_name_stands_once() -> None:
    names = Counter(
        node.name
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in names.items() if count > 1} == set()


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_nothing_unpickles_or_prints() -> None:
    for path in FILES:
        for node in ast.walk(tree_of(path)):
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


@pytest.mark.slow
def test_every_module_imports_with_the_core_dependencies_alone() -> None:
    extras = ["pytest", "mypy", *(set(FENCED) - CORE_LIBRARIES)]
    # vLLM has an environment of its own; serve is one extra as a whole, behind a door that says so.
    own = [path for path in FILES if room_of(path) not in ("octavo_vllm", "serve")]
    modules = [module_of(path) for path in own if path.name not in ("__init__.py", "__main__.py")]
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
