"""Run methods on tasks: hold each context once, ask every question about it, write a row each."""

import contextlib
import hashlib
import itertools
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers

import octavo
from octavo.errors import ConfigError, EvaluationError, PromptTooLongError
from octavo.machine import Peak, describe_machine
from octavo.model import Model
from octavo.progress import Progress
from octavo_evals.methods import Method, label, make_method
from octavo_evals.parts import Parts, cut
from octavo_evals.reading import Held, Unserved
from octavo_evals.rows import ANSWER, Key, open_folder
from octavo_evals.task import DataFiles, Item, Request, Task

_TIMES = ("ttft_seconds", "decode_seconds")


@dataclass(slots=True)
class Account:
    """What a run did."""

    written: int = 0
    found: int = 0
    """Rows that were there already, or that another process wrote meanwhile."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Method -> why it could not serve an item; the last reason of each."""


@dataclass(frozen=True, slots=True)
class _Work:
    """One method on the items that share a context."""

    task: Task
    method: Method
    length: int | None
    items: Sequence[tuple[Item, str]]
    """Each with the context of another, for the `shuffled` control."""

    @property
    def keys(self) -> list[Key]:
        """Return what the rows will be about."""
        return [self.key(item) for item, _ in self.items]

    def key(self, item: Item) -> Key:
        """Return what an item's row will be about."""
        return self.task.name, self.length, item.id, self.method.name, self.method.ratio


def evaluate(
    model: Model,
    tasks: Sequence[Task],
    methods: Sequence[tuple[str, int | None]],
    folder: Path,
    *,
    lengths: Sequence[int] = (),
    limit: int | None = None,
    seed: int = 42,
    data: DataFiles | None = None,
    command: str = "",
    on_row: Progress | None = None,
) -> Account:
    """Write the rows that `folder` does not hold yet, and return what was done.

    Interrupt it at will: the same call goes on, alone or in several processes at once. `command`
    is kept with the rows, for whoever wants to make them again. Raises `EvaluationError` for
    settings other than those of the folder's rows, data that is missing, and a task that makes
    its items to a length without one.
    """
    data = data or DataFiles()
    if limit is not None and limit < 1:
        raise EvaluationError(f"the limit is {limit}, expected at least 1")
    made = [make_method(name, ratio, model, data) for name, ratio in methods]
    works = list(_plan(model, tasks, made, lengths, limit, seed, data))
    account = Account()
    total = sum(len(work.items) for work in works)
    rows = open_folder(folder, _settings(model, seed, data), command)
    common = {**_about(model), "seed": seed}
    try:
        taken: list[_Work] = []
        for wait in (False, True):  # what another process has claimed is looked at again at the end
            for work in taken if wait else works:
                if all(map(rows.is_done, work.keys)):
                    account.found += len(work.items)
                    continue
                with rows.claim(work.keys, wait=wait) as todo:
                    if todo is None:
                        taken.append(work)
                        continue
                    for row in _run(model, work, set(todo), account):
                        account.written += rows.append([{**common, **row}])
                        if on_row is not None:
                            on_row(_name(work), account.written + account.found, total)
                    account.found += len(work.items) - len(todo)
    finally:
        rows.close()
    return account


def _plan(
    model: Model,
    tasks: Sequence[Task],
    methods: Sequence[Method],
    lengths: Sequence[int],
    limit: int | None,
    seed: int,
    data: DataFiles,
) -> Iterator[_Work]:
    """Yield the work, the methods side by side on each context."""
    for task in tasks:
        if task.has_length and not lengths:
            raise EvaluationError(f"{task.name} makes items to a length; give --length 1024")
        for length in lengths if task.has_length else (None,):
            request = Request(
                length=length,
                limit=limit,
                seed=seed,
                count_tokens=lambda text: len(model.prompts.text_ids(text)),
                max_prompt_tokens=model.engine.max_positions,
                data=data,
            )
            items = list(task.items(request))
            if not items:
                raise EvaluationError(f"{task.name} has no items in the data given; fix it")
            if len({item.id for item in items}) < len(items):
                raise EvaluationError(f"{task.name} gives two items one id; ids must differ")
            groups = [
                list(group)
                for _, group in itertools.groupby(items, lambda i: (i.before, i.context, i.is_chat))
            ]
            for at, group in enumerate(groups):
                stranger = _stranger(groups, at)
                for method in methods:
                    parcels = [[item] for item in group] if method.sees_question else [group]
                    for parcel in parcels:
                        yield _Work(task, method, length, [(item, stranger) for item in parcel])


def _stranger(groups: Sequence[Sequence[Item]], at: int) -> str:
    """Return the next context that is not this one; "" if there is none."""
    own = groups[at][0].context
    around = (groups[(at + step) % len(groups)][0].context for step in range(1, len(groups)))
    return next((context for context in around if context != own), "")


def _run(
    model: Model, work: _Work, todo: set[Key], account: Account
) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of one parcel of work, as they are made."""
    method = work.method
    weights = _weights(model)
    device = "cpu" if weights is None else weights.device
    model.engine.forget()  # no prefix of an earlier context: a first question pays for all it needs
    held: Held | None = None
    for item, stranger in work.items:
        if work.key(item) not in todo:
            continue
        parts = cut(model.prompts, item, stranger)
        row = _empty_row(work, item, parts)
        try:
            with Peak(device, collects=False) as peak:
                is_reused = held is not None
                if held is None:
                    held = method.hold(parts)
                reading = method.reply(held, parts)
        except (PromptTooLongError, Unserved) as reason:
            account.skipped[label(method.name, method.ratio)] = str(reason)
            yield row | {"skipped": str(reason), "score": None, "metrics": {}}
            continue
        metrics = dict(work.task.score(item, reading.reply))
        row |= {
            "score": metrics["score"],
            "metrics": metrics,
            "answer": reading.reply.text,
            "skipped": None,
            "prompt_tokens": reading.prompt_tokens,
            "new_tokens": reading.new_tokens,
            "is_reused": is_reused,
            "compress_seconds": 0.0 if is_reused else held.compress_seconds,
            **{name: getattr(reading, name) for name in _TIMES},
            "latents": held.num_latents,
            "context_bytes": held.context_bytes,
            "cache_bytes": reading.cache_bytes,
            "peak_bytes": peak.bytes,
        }
        yield row


def _empty_row(work: _Work, item: Item, parts: Parts) -> dict[str, Any]:
    """Return what is known of a row before it is answered."""
    return {
        **dict(zip(ANSWER.key, work.key(item), strict=True)),
        "references": list(item.references),
        "metric": work.task.metric,
        "context_tokens": len(parts.context),
        "is_masked": work.method.is_masked,
        "about": dict(item.about),
    }


def _name(work: _Work) -> str:
    at = "" if work.length is None else f" {work.length:,}"
    return f"{work.task.name}{at} {label(work.method.name, work.method.ratio)}"


def _settings(model: Model, seed: int, data: DataFiles) -> dict[str, Any]:
    """Return what all rows of a folder share."""
    about = _about(model)
    names = ("model", "fingerprint", "device", "dtype")
    places = {name: _identity(place) for name, place in data.places.items()}
    return {**{name: about[name] for name in names}, "seed": seed, "data": places}


def _about(model: Model) -> dict[str, Any]:
    """Say where a row comes from."""
    weights = _weights(model)
    return {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "device": "none" if weights is None else weights.device.type,
        "dtype": "none" if weights is None else str(weights.dtype).removeprefix("torch."),
        "versions": {
            "octavo": octavo.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            **_versions("kvpress", "wonderwords", "bm25s"),
        },
        "machine": describe_machine(),
        "threads": torch.get_num_threads(),
    }


def _versions(*names: str) -> dict[str, str]:
    """Return the versions of those libraries that are installed, which items or answers rest on."""
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _weights(model: Model) -> torch.Tensor | None:
    """Return some weights of a model; None for an engine without a torch module."""
    try:
        weights: torch.Tensor = next(iter(model.lclm.parameters()))
        return weights
    except ConfigError:
        return None


def _identity(place: str) -> str:
    """Return a hash of the contents of a place, or its name if it lies on the hub."""
    if place.startswith("hf:"):
        return place
    path = Path(place).expanduser()
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            while part := opened.read(1 << 20):
                digest.update(part)
    return f"{path.name} {digest.hexdigest()[:16]}"


def _files(path: Path) -> Iterable[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
