"""Save and find the checkpoints of a stage: weights, optimizer and place, complete or absent.

    STAGE/checkpoint-00000100/
        shard-*.safetensors   every trained weight and both moments, by torch.distributed.checkpoint
        state.json            step and what else the loop has to know

A checkpoint is written under another name and renamed when all ranks are done, so a folder of this
name is whole. It is written by as many ranks as there are and read by any number. Nothing in it is
pickled: the shards are safetensors.
"""

import contextlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from octavo.config import read_json
from octavo.errors import CheckpointError, MissingExtraError, TrainingError
from octavo.files import WriteError, replace_folder
from octavo.train import parallel

PATTERN = re.compile(r"checkpoint-(\d{8})")


def find(folder: Path) -> list[Path]:
    """Return the whole checkpoints of a stage, oldest first."""
    found = folder.glob("checkpoint-*") if folder.is_dir() else iter(())
    return sorted(path for path in found if PATTERN.fullmatch(path.name))


def save(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int
) -> Path:
    """Write the checkpoint of `step` and remove all but the newest `keep`; a collective."""
    path = folder / f"checkpoint-{step:08d}"
    temporary = folder / f".{path.name}.part"
    with parallel.on_main(f"saving {path}") as is_main:
        if is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    try:
        with _quiet():
            save_state(
                dict(tensors),
                storage_writer=_storage("Writer", temporary, save_distributed=True),
                no_dist=parallel.world()[1] == 1,
            )
    except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
        if parallel.is_main():
            shutil.rmtree(temporary, ignore_errors=True)
        raise WriteError(
            f"cannot write {path}: {_reason(error)}; free some space and resume"
        ) from error
    with parallel.on_main(f"saving {path}") as is_main:
        if is_main:
            try:
                text = json.dumps({**state, "files": _sizes(temporary)})
                (temporary / "state.json").write_text(text, encoding="utf-8")
                replace_folder(temporary, path)
            except OSError as error:
                shutil.rmtree(temporary, ignore_errors=True)
                raise WriteError(
                    f"cannot write {path}: {error.strerror or error}; free some space and resume"
                ) from error
            for older in find(folder)[:-keep]:
                # Under another name first: half a checkpoint must not look like a whole one.
                shutil.rmtree(older.rename(folder / f".{older.name}.part"))
            for half in folder.glob(".checkpoint-*.part"):
                shutil.rmtree(half, ignore_errors=True)
    return path


def read_state(path: Path) -> dict[str, Any]:
    """Return what the loop wrote beside the tensors.

    Raises `TrainingError` when it is not readable, or a file is not there at its full size.
    """
    try:
        state: dict[str, Any] = read_json(path / "state.json")
    except CheckpointError as error:
        raise _damaged(path, error) from error
    sizes = _sizes(path)
    for name, size in state["files"].items():
        if sizes.get(name) != size:
            raise _damaged(path, f"{name} has {sizes.get(name, 0)} bytes, expected {size}")
    return state


def _sizes(path: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(path.glob("*.safetensors"))}


def _damaged(path: Path, reason: object) -> TrainingError:
    return TrainingError(f"{path} is damaged ({reason}); remove it to go back to an older one")


def load(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors`, sharded or not, from a checkpoint of any number of ranks; a collective."""
    try:
        with _quiet():
            reader = _storage("Reader", path)
            _compare(path, reader.read_metadata().state_dict_metadata, tensors)
            load_state(dict(tensors), storage_reader=reader, no_dist=parallel.world()[1] == 1)
    except TrainingError:
        raise
    except (
        *(OSError, RuntimeError, ValueError, KeyError, TypeError),
        *(SafetensorError, CheckpointException),
    ) as error:
        raise _damaged(path, _reason(error)) from error


def _compare(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint of other parameters."""
    sizes = {name: tuple(getattr(entry, "size", ())) for name, entry in found.items()}
    if sizes != {name: tuple(tensor.shape) for name, tensor in wanted.items()}:
        raise TrainingError(
            f"{path} was written by a run that trained other parameters; use the same recipe, or "
            "another output folder"
        )


def _storage(kind: str, path: Path, **options: Any) -> Any:
    try:
        storage = getattr(dcp, f"HuggingFaceStorage{kind}")
    except AttributeError as error:
        raise MissingExtraError(
            f"training checkpoints need torch 2.9 or newer, this is {torch.__version__}: "
            "pip install -U torch"
        ) from error
    return storage(path=str(path), **options)


def _reason(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[-1][:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's warnings that a single process is not distributed; it is meant to be so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
