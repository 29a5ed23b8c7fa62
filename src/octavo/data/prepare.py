"""Turn the texts of a recipe into packed rows on disk, once, before anything is trained.

A shard is a function of the recipe's data, the texts, the seed, its mixture and its number alone:
any number of processes write the same bytes, and an interrupted preparation continues where it
stopped. `plan.json`, written first, says what the rows are made of; `manifest.json`, written last,
lists the rows (octavo.data.rows).
"""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from octavo.config import Extension
from octavo.data.builders import BUILDERS
from octavo.data.examples import Example, ExampleMaker
from octavo.data.packing import ShardMaker, never
from octavo.data.rows import (
    FORMAT,
    FORMAT_VERSION,
    HELD_OUT,
    MANIFEST,
    Counts,
    Row,
    describe_file,
    read_manifest,
    write_shard,
)
from octavo.data.sources import Library, fingerprint, read_libraries
from octavo.errors import TrainingError
from octavo.files import remove_leftovers, write_text
from octavo.progress import Progress
from octavo.prompt import PromptEncoder
from octavo.recipe import STAGES, MixtureSection, RunConfig
from octavo.settings import refuse_change
from octavo.weights.assembly import load_tokenizers
from octavo.weights.layout import read_tokenizers, resolve

PLAN = "plan.json"
MAX_HELD_OUT_ATTEMPTS = 200
"""Draws in a row that bring no new held-out example before what there is has to do."""
HELD_OUT_KINDS = ("reconstruction", "interleaved", "needle", "qa")
"""What is measured, where the held-out texts allow it."""
_LEEWAY = 1.2
"""How much larger than the probe the rows may become."""


def prepare(
    config: RunConfig,
    root: Path,
    out: Path,
    prompts: PromptEncoder,
    *,
    processes: int = 1,
    on_rows: Progress | None = None,
    is_stopped: Callable[[], bool] = never,
) -> dict[str, Any]:
    """Fill `out` with the rows that a recipe's stages read, and return the manifest.

    Relative paths of the recipe start at `root`. Shards that are there already are kept; a folder
    of rows by another recipe is refused, naming what differs. One process asks `is_stopped` before
    every example, and raises KeyboardInterrupt when it is true. Raises `TrainingError` before any
    row is written for texts that cannot make a kind of example, and for a disk too small.
    """
    train, held_out = read_libraries(config, root)
    plan = _plan(config, prompts, fingerprint(train, held_out))
    _begin(out, plan)
    maker = ShardMaker(config, train, prompts, out, _fingerprint(plan), is_stopped)
    with contextlib.suppress(TrainingError):
        manifest = read_manifest(out)
        if manifest["plan"] == maker.plan and _is_whole(out, manifest):
            return manifest
    row_bytes = {name: maker.probe(name) for name in plan["rows"]}
    held_out_file = _write_held_out(config, held_out, prompts, out)
    tasks = [(name, number) for name in plan["rows"] for number in range(maker.num_shards(name))]
    _check_space(maker, tasks, row_bytes)
    shards = _make_all(maker, tasks, processes, on_rows)
    manifest = {
        **{"format": FORMAT, "version": FORMAT_VERSION, "plan": maker.plan},
        **{key: plan[key] for key in ("seed", "texts", "tokenizers", "data")},
        "row_tokens": config.data.row_tokens,
        "mixtures": {name: _sum_up(maker, name, shards) for name in plan["rows"]},
        "held_out": held_out_file,
    }
    write_text(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return manifest


def open_stream(
    config: RunConfig, root: Path, prompts: PromptEncoder
) -> tuple[ShardMaker, dict[str, list[Example]], str]:
    """Return what makes a recipe's rows one step at a time, what to measure on, and what they are.

    Raises `TrainingError` as `prepare` does.
    """
    train, held_out = read_libraries(config, root)
    texts = _fingerprint(_plan(config, prompts, fingerprint(train, held_out)))
    maker = ShardMaker(config, train, prompts, root, texts)
    for name in mixtures_of(config):
        maker.probe(name)
    return maker, cut_held_out(config, held_out, prompts), texts[:16]


def open_prompts(config: RunConfig, root: Path) -> PromptEncoder:
    """Return the prompt encoder of a recipe's models, without loading a weight."""
    section = config.model
    if section.start is not None:
        checkpoint = resolve(locate(section.start, root))
        tokenizers = read_tokenizers(checkpoint, Extension.read(checkpoint))
    else:
        tokenizers = load_tokenizers(locate(section.encoder, root), locate(section.decoder, root))
    return PromptEncoder(*tokenizers, section.model_config())


def locate(name: str, root: Path) -> str:
    """Return a model folder below `root` as a path, and any other name as it is."""
    folder = root / Path(name).expanduser()
    return os.fspath(folder) if folder.is_dir() else name


def check_manifest(manifest: dict[str, Any], config: RunConfig, prompts: PromptEncoder) -> None:
    """Raise `TrainingError` unless a recipe can train on rows that another one may have prepared.

    The tokenizers have to be the same, its rows at least as long, and the model has to serve each
    row's ratio or a larger one, at which the row fits too.
    """
    fix = "prepare rows by this recipe (octavo data prepare), or set it back"
    for half, own in tokenizer_fingerprints(prompts).items():
        if manifest["tokenizers"][half] != own:
            raise TrainingError(
                f"the rows were made with another tokenizer than that of the {half}; {fix}"
            )
    if manifest["row_tokens"] > config.data.row_tokens:
        raise TrainingError(
            f"data.row_tokens is {config.data.row_tokens}, but the rows have up to "
            f"{manifest['row_tokens']} positions; {fix}"
        )
    served = config.served_ratios()
    for name in mixtures_of(config):
        if not (about := manifest["mixtures"].get(name)) or not about["rows"]:
            raise TrainingError(f"there are no prepared rows of the mixture {name!r}; {fix}")
        for ratio in about["ratios"]:
            if int(ratio) > max(served):
                raise TrainingError(
                    f"the rows of {name} were packed for ratio {ratio} among others, at which they "
                    f"are too long for the model's: {', '.join(map(str, served))} "
                    f"(model.compression_ratio and model.ratios); {fix}"
                )


def tokenizer_fingerprints(prompts: PromptEncoder) -> dict[str, str]:
    """Identify both tokenizers by what makes ids of a text here: control tokens are the decoder's.

    What a tokenizer adds of itself, or a call may change, is left out: saving would change it too.
    """
    decoder = prompts.decoder_tokenizer
    control = {token.content: index for index, token in decoder.added_tokens_decoder.items()}
    return {
        "decoder": _fingerprint([_text_settings(decoder.backend_tokenizer), control]),
        "encoder": _fingerprint([_text_settings(prompts.encoder_tokenizer.backend_tokenizer)]),
    }


def _text_settings(backend: Any) -> dict[str, Any]:
    settings = json.loads(backend.to_str())
    return {name: settings.get(name) for name in ("normalizer", "pre_tokenizer", "model")}


def _fingerprint(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def mixtures_of(config: RunConfig) -> list[str]:
    """Return the mixtures that the stages read, each once, in the order of the stages."""
    stages = [config.stages[name] for name in STAGES if name in config.stages]
    return list(dict.fromkeys(stage.mixture for stage in stages if stage.steps))


def _plan(config: RunConfig, prompts: PromptEncoder, texts: str) -> dict[str, Any]:
    """Return everything the rows depend on."""
    names = mixtures_of(config)
    data = dataclasses.asdict(config.data)
    for place in ("root", "rows", "stream", "workers"):
        del data[place]
    data["mixtures"] = {name: dataclasses.asdict(config.mixture(name)) for name in names}
    template = getattr(prompts.decoder_tokenizer, "chat_template", None)
    return {
        **{"format": FORMAT, "version": FORMAT_VERSION, "seed": config.seed},
        "ratios": config.served_ratios(),
        "rows": {name: config.num_rows(name) for name in names},
        "data": data,
        "tokenizers": tokenizer_fingerprints(prompts),
        "chat_template": _fingerprint(template),
        "texts": texts,
    }


def _begin(out: Path, plan: dict[str, Any]) -> None:
    """Write the plan, or compare it with the one that is there."""
    try:
        for folder in (out, *(out / name for name in plan["rows"])):
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
    except OSError as error:
        raise TrainingError(
            f"cannot make the folder {out} ({error.strerror}); choose another one"
        ) from error
    path = out / PLAN
    has_shards = any(out.glob("*/*.safetensors"))
    if not path.exists() or not has_shards:  # a plan without rows may be replaced
        write_text(path, json.dumps(plan, indent=2) + "\n")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} is damaged ({error}); choose another folder") from error
    refuse_change(
        before,
        plan,
        TrainingError,
        what=f"the rows in {out} were made",
        cure="set it back, or choose another folder",
    )


def _is_whole(out: Path, manifest: dict[str, Any]) -> bool:
    """Whether every file of a manifest is there at its full size."""
    files = [shard for about in manifest["mixtures"].values() for shard in about["shards"]]
    sizes = {out / listed["file"]: listed["bytes"] for listed in [*files, manifest["held_out"]]}
    return all(path.is_file() and path.stat().st_size == size for path, size in sizes.items())


def _sum_up(
    maker: ShardMaker, name: str, made: dict[tuple[str, int], dict[str, Any]]
) -> dict[str, Any]:
    """Return what the manifest says of a mixture; `made` is what the maker said of each shard."""
    counts, dropped = Counts(), Counter[str]()
    of_mixture = [made[name, number] for number in range(maker.num_shards(name))]
    for found in of_mixture:
        counts.merge(found["summary"])
        dropped.update(found["summary"]["dropped"])
    positions = sum(kind["positions"] for kind in counts.kinds.values())
    config = maker.config
    return {
        **{"wanted_rows": config.num_rows(name), **counts.to_dict()},
        "dropped": {kind: dropped[kind] for kind in sorted(dropped)},
        "efficiency": positions / max(1, counts.num_rows * config.data.row_tokens),
        "shards": [found["shard"] for found in of_mixture],
    }


def _check_space(
    maker: ShardMaker, tasks: list[tuple[str, int]], row_bytes: dict[str, float]
) -> None:
    """Refuse to begin what the disk cannot hold."""
    todo = [(name, number) for name, number in tasks if not maker.is_there(name, number)]
    needed = _LEEWAY * sum(row_bytes[name] * maker.wanted_rows(name, i) for name, i in todo)
    if (free := shutil.disk_usage(maker.out).free) < needed:
        raise TrainingError(
            f"the rows need about {needed / 1e9:.1f} GB at {maker.out}, but there are only "
            f"{free / 1e9:.1f} GB; make room, choose another folder, or lower the steps"
        )


def cut_held_out(
    config: RunConfig, library: Library, prompts: PromptEncoder
) -> dict[str, list[Example]]:
    """Return the examples to measure on, by kind; the same for every stage, ratio and seed."""
    mixture, maker = config.mixture(mixtures_of(config)[-1]), ExampleMaker(prompts, keep_raw=True)
    found = {k: list(_held_out(config, library, maker, mixture, k)) for k in HELD_OUT_KINDS}
    if not any(found.values()):
        raise TrainingError(
            f"held-out texts: none of {len(library)} documents makes an example of "
            f"{', '.join(HELD_OUT_KINDS)} that fits a row; name longer texts (data.held_out), or "
            "change the mixture's lengths"
        )
    return {kind: examples for kind, examples in found.items() if examples}


def _write_held_out(
    config: RunConfig, library: Library, prompts: PromptEncoder, out: Path
) -> dict[str, Any]:
    ratio, found = config.served_ratios()[0], cut_held_out(config, library, prompts)
    rows = [Row("", ratio, examples) for examples in found.values()]
    summary = write_shard(out / HELD_OUT, rows)
    examples = {kind: counts["examples"] for kind, counts in summary["by_kind"].items()}
    return {"file": HELD_OUT, **describe_file(out / HELD_OUT), "examples": examples}


def _held_out(
    config: RunConfig, library: Library, maker: ExampleMaker, mixture: MixtureSection, kind: str
) -> Iterator[Example]:
    """Yield different examples of a kind that fit a row at every ratio, as many as there may be."""
    if not library.has("questions" if kind == "qa" else "prose"):
        return
    rng, seen = random.Random(f"held_out/{kind}"), set[str]()  # whatever the seed: runs compare
    attempts = 0
    while len(seen) < config.data.held_out_examples and attempts < MAX_HELD_OUT_ATTEMPTS:
        attempts += 1
        example = BUILDERS[kind](rng, library, maker, mixture)
        if example is None or example.length(config.served_ratios()[0]) > config.data.row_tokens:
            continue
        if (key := _fingerprint([example.ids, example.spans])) not in seen:
            seen.add(key)
            attempts = 0
            yield example


# -- many processes ------------------------------------------------------------------------------

_worker: ShardMaker | None = None
"""What this process makes shards with, if it is one of several."""


def _make_all(
    maker: ShardMaker, tasks: list[tuple[str, int]], processes: int, on_rows: Progress | None
) -> dict[tuple[str, int], dict[str, Any]]:
    """Make every shard, in this process or in others, and return what `make` said of each."""
    made: dict[tuple[str, int], dict[str, Any]] = {}
    done: Counter[str] = Counter()

    def note(task: tuple[str, int], found: dict[str, Any]) -> None:
        made[task] = found
        done[task[0]] += maker.wanted_rows(*task)
        if on_rows:
            on_rows(task[0], done[task[0]], maker.config.num_rows(task[0]))

    if (num_workers := min(processes, len(tasks))) <= 1:
        for task in tasks:
            note(task, maker.make(*task))
        return made
    context = multiprocessing.get_context("spawn")  # torch has threads, which do not survive a fork
    stop = context.Event()
    pool = ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(maker, stop)
    )
    try:
        with _ctrl_c_blocked():  # the first task starts the processes, which inherit it
            futures = {pool.submit(_make, *task): task for task in tasks}
        for future in as_completed(futures):
            note(futures[future], future.result())
    except BrokenProcessPool as error:
        raise TrainingError(
            "a process that was making rows died, perhaps out of memory; run it again with fewer "
            "processes: whole shards are kept"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    return made


@contextlib.contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Put Ctrl-C off until the block ends; processes started in it always leave it to this one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(maker: ShardMaker, stop: Any) -> None:
    """Get ready to make shards; the texts come with `maker`, once."""
    global _worker
    maker.is_stopped = stop.is_set
    _worker = maker
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _make(name: str, number: int) -> dict[str, Any]:
    assert _worker is not None
    return _worker.make(name, number)
