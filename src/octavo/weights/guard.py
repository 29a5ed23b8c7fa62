"""Refuse files of a checkpoint that could run code, hang or fill memory, before they are opened."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from octavo.config import read_json
from octavo.errors import CheckpointError

MAX_COUNT = 1 << 13
"""Layers, heads or experts; the largest published models have some hundreds."""
MAX_SIZE = 1 << 24
"""Widths and vocabularies; the largest published ones are some hundred thousand."""
_READ = (".safetensors", ".json", ".jinja", ".txt", ".model")


def check_files(folder: Path) -> None:
    """Raise `CheckpointError` where a folder of weights or tokenizers holds what is no such thing.

    Files must be files (a pipe would be waited for), indexes must name files beside them, and
    numbers in configs must be those of a model.
    """
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.name.endswith(_READ) and not file.is_file():
            raise CheckpointError(f"{file} is not a file; fetch the checkpoint again")
        if file.name.endswith(".safetensors.index.json"):
            places = read_json(file).get("weight_map")
            names = set(places.values()) if isinstance(places, dict) else {None}
            for name in names:
                if not isinstance(name, str) or name != Path(name).name or name in ("", ".."):
                    raise CheckpointError(
                        f"{file} names {name!r}, expected a file beside it; fetch it again"
                    )
        elif file.name.endswith("config.json"):
            for key, value in _items(read_json(file)):
                _check_value(file, key, value)


def _check_value(file: Path, key: str, value: Any) -> None:
    is_count = any(word in key for word in ("layer", "head", "expert"))
    is_size = key.endswith(("_size", "_dim", "_rank")) or key.startswith(("num_", "n_", "d_"))
    limit = MAX_COUNT if is_count and not key.endswith("_dim") else MAX_SIZE
    if (
        (is_count or is_size or key == "r")
        and isinstance(value, int | float)
        and abs(value) > limit
    ):
        raise CheckpointError(f"{file}: {key} is {value!r}, expected at most {limit:,}")
    if key.endswith("implementation") and "/" in str(value):
        raise CheckpointError(f"{file}: {key} is {value!r}, code of a hub, which is never run")


def _items(values: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of nested JSON."""
    waiting = [values]
    while waiting:
        now = waiting.pop()
        if isinstance(now, Mapping):
            yield from now.items()
            waiting.extend(now.values())
        elif isinstance(now, list):
            waiting.extend(now)
