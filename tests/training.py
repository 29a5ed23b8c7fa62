"""Shared by the tests of training: a recipe that trains the golden halves, and what a run left."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from conftest import CHECKPOINT, TEXT
from safetensors.torch import load_file

from octavo.data.examples import ExampleMaker
from octavo.data.rows import Row
from octavo.nn import LCLM
from octavo.recipe import RunConfig
from octavo.train.feed import PreparedRows
from octavo.train.loop import Stage
from octavo.weights.assembly import add_lora, assemble_parts
from octavo.weights.layout import Checkpoint

GROUPS = ("adapter", "encoder", "decoder", "memory_rows")
ADAPTER = {"steps": 4, "lr": {"adapter": 1e-2, "memory_rows": 1e-2}}
ENCODER = {"steps": 4, "lr": {"adapter": 1e-2, "encoder": 1e-2}}
DECODER = {"steps": 4, "lr": {"adapter": 1e-2, "encoder": 1e-2, "decoder": 1e-2}}

UNSHARED = {
    *("time", "seconds", "exported", "decoder_tokens_per_second", "source_tokens_per_second"),
    *("memory_bytes", "mfu", "waited"),
}
"""What no two runs of the same recipe share in their logs."""


def recipe(folder: Path, **changes: Any) -> RunConfig:
    """Write texts to `folder` and return a recipe that trains the golden halves on them.

    A change is named by its key, with two underscores for a dot; `stages` is a dictionary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.txt").write_text(TEXT * 8, encoding="utf-8")
    (folder / "held.txt").write_text(TEXT[::-1] * 4, encoding="utf-8")
    main = "data.mixtures.main"
    values: dict[str, Any] = {
        "model.encoder": str(CHECKPOINT / "encoder"),
        "model.decoder": str(CHECKPOINT / "decoder"),
        "model.compression_ratio": 4,
        "model.ratios": [8],
        "model.encoder_window_size": 16,
        "data.train": ["a.txt"],
        "data.held_out": ["held.txt"],
        "data.row_tokens": 96,
        "data.rows_per_shard": 8,
        "data.held_out_examples": 3,
        f"{main}.weights": {"reconstruction": 0.5, "interleaved": 0.5},
        f"{main}.copy_tokens": [4, 12],
        f"{main}.document_tokens": [16, 40],
        f"{main}.min_segment_tokens": 4,
        f"{main}.context_tokens": [8, 32],
        f"{main}.max_questions": 2,
        "batch_rows": 4,
        "micro_batch_rows": 2,
        "save_every": 2,
        "measure_every": 99,
        "keep_best": False,
        "output": "out",
        "precision": "fp32",
        "device": "cpu",
    }
    stages = changes.pop("stages", {"adapter": ADAPTER})
    values.update({name.replace("__", "."): value for name, value in changes.items()})
    for name, stage in stages.items():
        values[f"stages.{name}"] = stage
    file = folder / "recipe.toml"
    file.write_text("", encoding="utf-8")
    flat = [one for name, value in values.items() for one in _flat(name, value)]
    return RunConfig.load(file, [f"{name}={json.dumps(value)}" for name, value in flat])


def write_recipe(config: RunConfig, file: Path) -> Path:
    """Write a whole recipe as the TOML file that `octavo train` reads."""
    flat = [one for one in _flat("", config.to_dict()) if one[1] is not None]
    lines = []
    for name, value in flat:
        keys = ".".join(json.dumps(key) for key in name.split("."))
        lines.append(f"{keys} = {json.dumps(value)}\n")
    file.write_text("".join(lines), encoding="utf-8")
    return file


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        return [] if value == {} else [(name, value)]
    return [one for key, item in value.items() for one in _flat(f"{name}.{key}".strip("."), item)]


def assemble(config: RunConfig) -> Checkpoint:
    """Return the untrained model of a recipe."""
    torch.manual_seed(config.seed)
    section, lora = config.model, config.lora
    lclm, decoder_tokenizer, encoder_tokenizer = assemble_parts(
        section.encoder, section.decoder, section.model_config(), extension=section.extension()
    )
    if lora.rank:
        add_lora(
            lclm, lora.rank, lora.alpha, None, encoder=section.encoder, decoder=section.decoder
        )
    return Checkpoint(lclm, decoder_tokenizer, encoder_tokenizer, "tiny", "")


def made_rows(
    checkpoint: Checkpoint, count: int, *, ratios: Sequence[int] = (4, 8), seed: int = 0
) -> list[Row]:
    """Make rows by hand: one to three examples with one or two spans, of unlike lengths."""
    maker, draw = ExampleMaker(checkpoint.prompts()), random.Random(seed)

    def text(longest: int) -> str:
        first = draw.randrange(len(TEXT) - longest)
        return TEXT[first : first + draw.randint(3, longest)].strip() or "x"

    rows = []
    for index in range(count):
        examples = []
        for number in range(draw.randint(1, 3)):
            parts: list[Any] = []
            for _ in range(draw.randint(1, 2)):
                parts += [("span", text(20)), ("given", ": "), ("scored", text(6))]
            example = maker.from_parts("made", parts, f"made:{index}.{number}")
            assert example is not None
            examples.append(example)
        rows.append(Row(f"made/0:{index}", ratios[index % len(ratios)], examples))
    return rows


def one_stage(
    folder: Path,
    name: str = "adapter",
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    rows: Sequence[Row] | None = None,
    **changes: Any,
) -> Stage:
    """Return a stage of a fresh model over rows made by hand; it saves in `folder/stage`."""
    extra = {key: changes.pop(key) for key in ("measure", "export", "stop") if key in changes}
    config = recipe(folder, **{"data__row_tokens": 128, **changes})
    checkpoint = assemble(config)
    rows = rows if rows is not None else made_rows(checkpoint, 40)
    source = PreparedRows(rows, "made")  # type: ignore[arg-type]
    return Stage(name, checkpoint.lclm, source, config, folder / "stage", log, **extra)


def weights_of(lclm: LCLM) -> dict[str, torch.Tensor]:
    """Return a copy of every weight."""
    return {name: tensor.clone() for name, tensor in lclm.state_dict().items()}


def moments_of(stage: Stage) -> dict[str, torch.Tensor]:
    """Return Adam's moments of every trained parameter."""
    return {
        f"{key}/{name}": stage.optimizer.state[parameter][key].clone()
        for name, parameter in stage.named.items()
        for key in ("exp_avg", "exp_avg_sq")
    }


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Return the log without what no two runs share."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    kept = [row for row in rows if "resumed" not in row and "exported" not in row]
    return [{k: v for k, v in row.items() if k not in UNSHARED} for row in kept]


def losses_of(out: Path) -> list[float]:
    """Return the loss of every step, in the order of the log."""
    return [row["loss"] for row in rows_of(out) if "loss" in row]


def measured_steps(out: Path) -> list[int]:
    """Return the steps that were measured, in the order of the log."""
    return [row["step"] for row in rows_of(out) if "measured" in row]


def interrupt_at(stage: str, step: int) -> Callable[[str, int, int, float], None]:
    """Return an `on_step` that asks the run to stop after a step."""

    def on_step(its_stage: str, its_step: int, steps: int, loss: float) -> None:
        if (its_stage, its_step) == (stage, step):
            raise KeyboardInterrupt

    return on_step


def tensors_of(out: Path) -> dict[str, torch.Tensor]:
    """Return every tensor a run left, by file and name: rows, checkpoints, best and exports."""
    return {
        f"{file.relative_to(out)}/{name}": tensor
        for file in sorted(out.rglob("*.safetensors"))
        if not any(part.startswith(".") for part in file.relative_to(out).parts)
        for name, tensor in load_file(file).items()
    }


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that two runs left the same log and the same files, bit for bit."""
    assert rows_of(one) == rows_of(other)
    ours, theirs = tensors_of(one), tensors_of(other)
    assert ours.keys() == theirs.keys()
    assert any("exp_avg" in name for name in ours)
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []
