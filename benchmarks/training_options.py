"""Compare ways to train a compressor in the same minutes of one core, on the same examples.

Every way is an option of a recipe, or another loss, and begins with the bare base. The held-out
examples are the same for all, so differences to the first run are paired; what another seed changes
says how much a difference means. A noisy machine shows in the number of steps.

    python benchmarks/training_options.py run ROWS --data DATA --only NAME...
    python benchmarks/training_options.py table ROWS
    python benchmarks/training_options.py profile --data DATA
"""

import argparse
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.data.examples import IGNORED
from octavo.data.prepare import cut_held_out, open_prompts
from octavo.data.sources import read_libraries
from octavo.machine import describe_machine
from octavo.nn import LCLM
from octavo.nn.score import score_hidden
from octavo.recipe import RunConfig
from octavo.statistics import estimate
from octavo.train import loop
from octavo.train import run as runs
from octavo.train.batch import MicroBatch
from octavo.train.measure import _tally
from octavo.train.stages import train
from octavo.weights.layout import read

RECIPE = Path(__file__).with_suffix(".toml")
TOP = 64
"""The teacher's likeliest tokens that are compared one by one; all others count as one."""
RATIO = 4
KINDS = ("reconstruction", "needle", "qa")
IN_INT8 = ("next token", "LoRA of rank 32", "LoRA of rank 64")
"""Whose factors are also measured as if they were stored in int8."""
FIRST = (
    "stages.decoder.steps=100", "stages.decoder.warmup_steps=3", "stages.decoder.min_lr_ratio=1.0",
    'stages.decoder.mixture="first"', "data.mixtures.first.context_tokens=[24, 500]",
    "data.mixtures.first.weights={ reconstruction = 0.1, needle = 0.9 }",
    "stages.decoder.lr={ adapter = 1e-3, memory_rows = 1e-3, encoder = 1e-3, decoder = 1e-3 }",
)  # fmt: skip
EVERYDAY = "{ reconstruction = 0.4, needle = 0.24, qa = 0.16, everyday = 0.2 }"
TWO_ROWS = ("batch_rows=2", "micro_batch_rows=2", "stages.sft.steps=200")

OPTIONS: dict[str, tuple[str, Sequence[str]]] = {
    # name: (the loss, the recipe's settings)
    "next token": ("next", ()),
    "another seed": ("next", ("seed=1",)),
    "KL to raw": ("kl", ()),
    "next token + KL to raw": ("next+kl", ()),
    "next token + hidden states of raw": ("next+hidden", ()),
    "constant rate, decay in the last fifth": ("next", ("stages.sft.hold=0.8",)),
    "batches of 2 rows": ("next", TWO_ROWS),
    "batches of 8 rows": ("next", ("batch_rows=8",)),
    "2 rows of 512": ("next", (*TWO_ROWS, "data.row_tokens=512")),
    "LoRA of rank 32": ("next", ("lora.rank=32", "lora.alpha=64")),
    "LoRA of rank 64": ("next", ("lora.rank=64", "lora.alpha=128")),
    "needles first": ("next", FIRST),
    "a fifth everyday": ("next", (f"data.mixtures.sft.weights={EVERYDAY}",)),
    "a fifth raw": ("next", ("data.mixtures.sft.raw=0.2",)),
}


class Distilled(loop.Stage):
    """A stage whose teacher is its own model, reading the raw text without gradients."""

    loss = "next"

    def _add_gradients(self, batches: Sequence[MicroBatch], scored: int) -> tuple[Tensor, Tensor]:
        found = torch.zeros(2, dtype=torch.float64)
        for batch in batches:
            with loop.autocast(self.config.precision, self.device):
                student_PD, labels_P = student(self.model, batch)
                with torch.no_grad():
                    teacher_PD = teacher(self.model, batch)
                head = self.model.get_output_embeddings()
                loss_P, is_hit_P = score_hidden(head, student_PD, labels_P)
                total = 0 if self.loss == "kl" else loss_P.sum()
                if "kl" in self.loss:
                    divergence = likeness(head, student_PD, teacher_PD)
                    total = divergence if self.loss == "kl" else (total + divergence) / 2
                if "hidden" in self.loss:
                    far_P = (student_PD.float() - teacher_PD.float()).square().mean(-1)
                    total = total + (far_P / teacher_PD.float().square().mean(-1)).sum()
            (total / max(1, scored)).backward()
            found += torch.stack([loss_P.detach().double().sum(), is_hit_P.double().sum()])
        return found, torch.zeros(self.config.batch_rows, dtype=torch.float64)


def student(model: LCLM, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Return hidden states and targets of the scored positions, read from latents."""
    inputs = batch.inputs(torch.device("cpu"))
    latents_SD = None
    if len(inputs["memory_ids_ML"]):
        of_spans = (inputs[f"memory_{name}"] for name in ("ids_ML", "lengths_M", "ratios_M"))
        latents_SD = model.span_latents(*of_spans, one_pass=True)
    embeds_BTD = model.embed(inputs["input_ids_BT"], latents_SD)
    return scored_states(model, embeds_BTD, inputs["position_ids_BT"], inputs["labels_BT"])


def teacher(model: LCLM, batch: MicroBatch) -> Tensor:
    """Return the hidden states of the same positions where the spans are read as raw text."""
    spans = (
        ids[:length].tolist()
        for ids, length in zip(batch.memory_ids_ML, batch.memory_lengths_M, strict=True)
    )
    rows = [
        raw_row(*columns, spans, model.memory_token_id)
        for columns in zip(
            batch.input_ids_BT.tolist(), batch.labels_BT.tolist(), batch.position_ids_BT.tolist(),
            strict=True,
        )
    ]  # fmt: skip
    longest = max(len(ids) for ids, _, _ in rows)
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    labels_BT = torch.full((len(rows), longest), IGNORED)
    positions_BT = torch.arange(longest).repeat(len(rows), 1)
    for index, (ids, labels, positions) in enumerate(rows):
        ids_BT[index, : len(ids)] = torch.tensor(ids)
        labels_BT[index, : len(ids)] = torch.tensor(labels)
        positions_BT[index, : len(ids)] = torch.tensor(positions)
        positions_BT[index, len(ids) :] = torch.arange(longest - len(ids))
    return scored_states(model, model.embed_tokens(ids_BT), positions_BT, labels_BT)[0]


def raw_row(
    ids: list[int], labels: list[int], positions: list[int], spans: Any, slot_id: int
) -> tuple[list[int], list[int], list[int]]:
    """Return a row with the tokens of its spans where its slots are."""
    raw_ids: list[int] = []
    raw_labels: list[int] = []
    raw_positions: list[int] = []
    before = None
    for token, label, position in zip(ids, labels, positions, strict=True):
        if position == 0:
            start = len(raw_ids)
        tokens = [token]
        if token == slot_id:
            tokens = [] if before == slot_id else next(spans)
        before = token
        raw_ids += tokens
        raw_labels += [label] * len(tokens)
        raw_positions += range(len(raw_ids) - len(tokens) - start, len(raw_ids) - start)
    return raw_ids, raw_labels, raw_positions


def scored_states(
    model: LCLM, embeds_BTD: Tensor, positions_BT: Tensor, labels_BT: Tensor
) -> tuple[Tensor, Tensor]:
    hidden_BTD = model._decode_packed(embeds_BTD, positions_BT)
    is_scored_BT = labels_BT[:, 1:] != IGNORED
    return hidden_BTD[:, :-1][is_scored_BT], labels_BT[:, 1:][is_scored_BT]


def likeness(head: nn.Module, student_PD: Tensor, teacher_PD: Tensor) -> Tensor:
    """Return the sum over positions of KL(teacher, student) over the likeliest and all the rest."""
    with torch.no_grad():
        sure_PV = head(teacher_PD).float().log_softmax(-1)
        top_PK, which_PK = sure_PV.topk(TOP)
    own_PK = head(student_PD).float().log_softmax(-1).gather(-1, which_PK)
    kl_P = (top_PK.exp() * (top_PK - own_PK)).sum(-1)
    rest_P, own_rest_P = ((1 - x.exp().sum(-1)).clamp_min(1e-6) for x in (top_PK, own_PK))
    return (kl_P + rest_P * (rest_P.log() - own_rest_P.log())).sum()


def load(data: Path, name: str, minutes: float) -> RunConfig:
    settings = OPTIONS[name][1]
    halves = sum(one.startswith("stages.decoder.steps") for one in settings) + 1
    timed = [
        f"stages.{stage}.seconds={60 * minutes / halves}"
        for stage in ("decoder", "sft")[2 - halves :]
    ]
    return RunConfig.load(RECIPE, [f'data.root="{data}"', *settings, *timed])


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    common = load(options.data, "next token", options.minutes)
    root = Path.cwd()
    _, held_out_texts = read_libraries(common, root)
    held_out = cut_held_out(common, held_out_texts, open_prompts(common, root))
    shared = Path(f"{common.output}-rows-{os.getpid()}")
    for name in options.only or OPTIONS:
        config = load(options.data, name, options.minutes)
        config.output = f"{config.output}-{os.getpid()}"
        shutil.rmtree(config.output, ignore_errors=True)
        loss, settings = OPTIONS[name]
        Distilled.loss = loss
        runs.Stage = Distilled if loss != "next" else loop.Stage  # type: ignore[misc]
        is_usual = not any(one.startswith(("data.", "seed", "stages.decoder")) for one in settings)
        if is_usual and shared.is_dir():
            config.data.rows = str(shared)
        export = train(config, root)
        if is_usual and not shared.is_dir():
            (Path(config.output) / "rows").rename(shared)
        about = describe(name, config, options.minutes)
        variants = {name: False} | ({f"{name}, in int8": True} if name in IN_INT8 else {})
        results = []
        for label, is_rounded in variants.items():
            model = read(export, trainable=True, rotary="exact").lclm.eval()
            if is_rounded:
                round_factors(model)
            results.append(about | {"name": label, "scores": scores(model, held_out)})
        with options.rows.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in results)
        shutil.rmtree(config.output)
    shutil.rmtree(shared, ignore_errors=True)


def describe(name: str, config: RunConfig, minutes: float) -> dict[str, Any]:
    """Return what a run did, by its log."""
    out = Path(config.output)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    steps = [line for line in log if "loss" in line]
    return {
        "name": name,
        "minutes": minutes,
        "steps": len(steps),
        "positions": sum(line["decoder_tokens"] for line in steps),
        "seconds": round(sum(line["seconds"] for line in steps), 1),
        "precision": json.loads((out / "config.json").read_text())["recipe"]["precision"],
        "machine": describe_machine(),
    }


@torch.no_grad()
def round_factors(model: LCLM) -> None:
    """Round every low-rank factor as if it were stored in int8, with a scale a row."""
    for name, weight in model.named_parameters():
        if "lora_" in name:
            scale = weight.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
            weight.copy_((weight / scale).round() * scale)


def scores(model: LCLM, held_out: dict[str, Any]) -> dict[str, list[list[float]]]:
    """Return loss, hits and tokens of every held-out example, by kind and ratio or raw text."""
    found = {}
    model = model.to(torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for kind in KINDS:
            examples = held_out[kind]
            found[f"{kind}/{RATIO}x"] = _tally(model, examples, "latents", RATIO, 8)
            found[f"{kind}/raw"] = _tally(model, examples, "raw", RATIO, 8)
    return {
        at: [[round(one.loss, 3), one.hits, one.tokens] for one in rows]
        for at, rows in found.items()
    }


def table(options: argparse.Namespace) -> None:
    rows = [json.loads(line) for line in options.rows.open(encoding="utf-8")]
    by_name = {row["name"]: row for row in rows}
    columns = list(rows[0]["scores"])
    print("| | steps | positions a second | " + " | ".join(columns) + " |")
    print("|" + "---|" * (len(columns) + 3))
    for name in [*OPTIONS, *(n for n in by_name if n not in OPTIONS)]:
        if (row := by_name.get(name)) is None:
            continue
        first = by_name["next token"]
        cells = [difference(row["scores"][at], first["scores"][at], row is first) for at in columns]
        speed = row["positions"] / row["seconds"]
        print(f"| {name} | {row['steps']} | {speed:.0f} | " + " | ".join(cells) + " |")


def difference(own: list[list[float]], first: list[list[float]], is_first: bool) -> str:
    """Return the loss a token, or how much lower it is than the first run's, and accuracy."""
    tokens = [tokens for _, _, tokens in own]
    hits = 100 * sum(hits for _, hits, _ in own) / sum(tokens)
    if is_first:
        return f"{sum(loss for loss, _, _ in own) / sum(tokens):.3f} ({hits:.1f}%)"
    pairs = [[b[0] - a[0], count] for a, b, count in zip(own, first, tokens, strict=True)]
    found = estimate([pairs])
    shown = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return (f"**{shown}**" if found.excludes(0) else shown) + f" ({hits:.1f}%)"


def profile(options: argparse.Namespace) -> None:
    """Say where three steps spend their time: matrix products, or what else."""
    torch.set_num_threads(1)
    config = load(options.data, "next token", 600)
    config.stages["sft"].steps = 5
    config.output += "-profile"
    shutil.rmtree(config.output, ignore_errors=True)
    profiler: Any = torch.profiler.profile()
    began = [0.0]

    def on_step(stage: str, step: int, steps: int, loss: float) -> None:
        if step == 2:
            profiler.start()
            began[0] = time.perf_counter()
        if step == 5:
            began[0] = time.perf_counter() - began[0]
            profiler.stop()

    train(config, Path.cwd(), on_step=on_step)
    spent = Counter[str]()
    for event in profiler.key_averages():
        spent[event.key] += event.self_cpu_time_total / 1e6
    products = sum(s for op, s in spent.items() if any(w in op for w in ("mm", "linear", "matmul")))
    print(f"three steps: {began[0]:.1f} s, matrix products {100 * products / began[0]:.0f}%")
    for op, seconds in spent.most_common(14):
        print(f"{100 * seconds / began[0]:5.1f}%  {op}")
    shutil.rmtree(config.output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(required=True)
    for name, function in (("run", run), ("table", table), ("profile", profile)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        if name != "profile":
            command.add_argument("rows", type=Path)
        if name != "table":
            command.add_argument("--data", type=Path, required=True)
        if name == "run":
            command.add_argument("--minutes", type=float, default=2)
            command.add_argument("--only", nargs="+", metavar="NAME", choices=OPTIONS)
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
