"""Run methods on tasks: hold each context once, ask every question about it, write a row each."""

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from octavo.errors import ConfigError, EvaluationError, PromptTooLongError
from octavo.machine import Peak
from octavo.model import Model
from octavo.progress import Progress, ignore
from octavo_evals.methods import Method, label, make_method
from octavo_evals.parts import cut, other_context
from octavo_evals.reading import Held, Unserved, read
from octavo_evals.rows import ANSWER, Key, Row, describe_run, open_folder
from octavo_evals.task import DataFiles, Item, MissingData, Request, Task


@dataclass(slots=True)
class Account:
    """What a run did."""

    written: int = 0
    found: int = 0
    """Rows that were there already, or that another process wrote meanwhile."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Method -> why it could not serve an item; the last reason of each."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Task of a group -> what it would have needed."""


@dataclass(frozen=True, slots=True)
class _Work:
    """One method on the items that share a context."""

    task: Task
    method: Method
    length: int | None
    items: Sequence[Item]
    other_context: str
    """For the `shuffled` control."""

    @property
    def name(self) -> str:
        """Return task, length and method, as a person reads them."""
        at = "" if self.length is None else f" {self.length:,}"
        return f"{self.task.name}{at} {label(self.method.name, self.method.ratio)}"

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
    optional: Container[str] = (),
    command: str = "",
    on_row: Progress = ignore,
) -> Account:
    """Write the rows that `folder` does not hold yet, and return what was done.

    Interrupt it at will: the same call goes on, alone or in several processes at once. `optional`
    tasks whose data is missing are left out, unless nothing else is wanted. `command` is kept
    with the rows, for whoever wants to make them again. Raises `EvaluationError` for
    settings other than those of the folder's rows, data that is missing, and a task that makes
    its items to a length without one.
    """
    request = Request(
        limit=limit,
        seed=seed,
        count_tokens=lambda text: len(model.prompts.text_ids(text)),
        max_prompt_tokens=model.engine.max_positions,
        data=data or DataFiles(),
    )
    made = [make_method(name, ratio, model, request.data) for name, ratio in methods]
    account = Account()
    works: list[_Work] = []
    for task in tasks:
        try:
            for length in lengths or (None,) if task.has_length else (None,):
                works += _plan(task, made, dataclasses.replace(request, length=length))
        except MissingData as error:
            account.left_out[task.name] = str(error)
            if task.name not in optional or len(account.left_out) == len(tasks):
                raise
    total = sum(len(work.items) for work in works)
    settings = _settings(model) | {"seed": seed}
    places = {name: _identity(place) for name, place in request.data.places.items()}
    common = {**settings, **describe_run("kvpress", "wonderwords", "bm25s")}
    with open_folder(folder, {**settings, "data": places}, command) as rows:
        taken: list[_Work] = []
        for wait in (False, True):  # what another process has claimed is looked at again at the end
            for work in taken if wait else works:
                keys = [work.key(item) for item in work.items]
                if all(map(rows.is_done, keys)):
                    account.found += len(keys)
                    continue
                with rows.claim(keys, wait=wait) as todo:
                    if todo is None:
                        taken.append(work)
                        continue
                    for row in _run(model, work, set(todo), account):
                        account.written += rows.append([{**common, **row}])
                        on_row(work.name, account.written + account.found, total)
                    account.found += len(keys) - len(todo)
    return account


def _plan(task: Task, methods: Sequence[Method], request: Request) -> Iterator[_Work]:
    """Yield the work of a task at one length, the methods side by side on each context."""
    items = list(task.items(request))
    if not items:
        raise EvaluationError(f"{task.name} has no items in the data given; fix it")
    if len({item.id for item in items}) < len(items):
        raise EvaluationError(f"{task.name} gives two items one id; ids must differ")
    groups = [
        list(group)
        for _, group in itertools.groupby(items, lambda i: (i.before, i.context, i.is_chat))
    ]
    contexts = [group[0].context for group in groups]
    for at, group in enumerate(groups):
        other = other_context(contexts, at)
        for method in methods:
            for shared in [[item] for item in group] if method.sees_question else [group]:
                yield _Work(task, method, request.length, shared, other)


def _run(model: Model, work: _Work, todo: set[Key], account: Account) -> Iterator[Row]:
    """Yield the rows of one method on one context, as they are made."""
    method = work.method
    weights = _weights(model)
    device = "cpu" if weights is None else weights.device
    model.engine.forget()  # no prefix of an earlier context: a first question pays for all it needs
    held: Held | None = None
    for item in work.items:
        if work.key(item) not in todo:
            continue
        parts = cut(model.prompts, item, work.other_context)
        row = {
            **dict(zip(ANSWER.key, work.key(item), strict=True)),
            "references": list(item.references),
            "metric": work.task.metric,
            "context_id": hashlib.sha256(item.context.encode()).hexdigest()[:16],
            "context_tokens": len(parts.context),
            "is_masked": method.is_masked,
            "about": dict(item.about),
        }
        is_reused = held is not None
        try:
            with Peak(device, collects=False) as peak:
                held = held or method.hold(parts)
                outcome = read(model, held, parts)
        except (PromptTooLongError, Unserved) as reason:
            account.skipped[label(method.name, method.ratio)] = str(reason)
            yield row | {"skipped": str(reason), "score": None, "metrics": {}}
            continue
        metrics = dict(work.task.score(item, outcome.reply))
        yield row | {
            "score": metrics["score"],
            "metrics": metrics,
            "answer": outcome.reply.text,
            "skipped": None,
            "is_reused": is_reused,
            "compress_seconds": 0.0 if is_reused else held.compress_seconds,
            "latents": held.num_latents,
            "context_bytes": held.context_bytes,
            "peak_bytes": peak.bytes,
            "notes": dict(held.notes),
            **outcome.counted,
        }


def _settings(model: Model) -> dict[str, Any]:
    """Return what all rows of a folder share of the model."""
    weights = _weights(model)
    return {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "device": "none" if weights is None else weights.device.type,
        "dtype": "none" if weights is None else str(weights.dtype).removeprefix("torch."),
    }


def _weights(model: Model) -> torch.Tensor | None:
    """Return some weights of a model; None for an engine without a torch module."""
    weights: torch.Tensor | None = None
    with contextlib.suppress(ConfigError):
        weights = next(model.lclm.parameters())
    return weights


def _identity(place: str) -> str:
    """Return a hash of the contents of a place, or its name if it lies on the hub."""
    if place.startswith("hf:"):
        return place
    path = Path(place).expanduser()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            hashlib.file_digest(opened, lambda: digest)
    return f"{path.name} {digest.hexdigest()[:16]}"
