"""Training throughput and MFU: packed rows against padded single examples, on random weights.

Both read the same examples in one process, in interleaved repeats: `packed` lays as many examples
as fit into rows of `--row-tokens` positions; `padded` gives each example a row of its own, padded
to the longest of its forward pass, with at most as many positions in a pass. A repeat is one
optimizer step over all examples. Rows go to a JSONL file, one per method and repeat.

MFU is useful FLOPs per second over the device's peak. Useful FLOPs of a step, padding left out:

    weights     2 per parameter and token forward, 2 for the activations' gradient, 2 for the
                weights'; encoder: source tokens; adapter: latents; decoder: positions; output
                layer: scored positions (octavo.costs.Work)
    attention   3 * 2 * n^2 * heads * head_dim * layers for each causal sequence of n tokens, an
                example in the decoder or a window in the encoder: half of all pairs, scores and
                values, forward once and backward twice

The peak is `--peak-tflops`, or known for the card, or on a CPU a large matrix product of the same
type timed in the same run. Under torchrun with `--fsdp`, the model is sharded over the processes:

    python benchmarks/train_throughput.py --shape tiny
    torchrun --nproc-per-node 8 benchmarks/train_throughput.py --shape paper-0.6b-0.6b --fsdp
"""

import argparse
import contextlib
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

import octavo
from octavo.config import ModelConfig
from octavo.costs import Work, peak_tflops
from octavo.data.examples import Example
from octavo.data.rows import Row
from octavo.nn import LCLM, LCLMConfig
from octavo.train import parallel
from octavo.train.batch import Batch, collate

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128, "vocab_size": 512,
    },
    "smol": {  # the sizes of SmolLM2-135M
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 64, "intermediate_size": 1536, "vocab_size": 49_155,
    },
    "paper-0.6b-0.6b": {  # Qwen3-0.6B, as encoder and as decoder
        "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072,
        "vocab_size": 151_936,
    },
}  # fmt: skip
METHODS = ("packed", "padded")
WINDOW = 1024
MATMUL = 2048
"""Side of the matrices whose product measures a CPU's peak."""


def main() -> None:
    """Measure, write rows, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--examples", type=int, default=64, help="examples per optimizer step")
    parser.add_argument("--row-tokens", type=int, default=1024)
    parser.add_argument("--micro-rows", type=int, default=4, help="packed rows per forward pass")
    parser.add_argument("--context-tokens", type=int, nargs=2, default=[64, 2048])
    parser.add_argument("--text-tokens", type=int, nargs=2, default=[32, 512])
    parser.add_argument("--ratio", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["bf16", "fp32"])
    parser.add_argument("--attention", help="sdpa, eager, flex_attention or flash_attention_2")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--fsdp", action="store_true", help="shard over torchrun's processes")
    parser.add_argument("--peak-tflops", type=float)
    parser.add_argument("-o", "--output", type=Path, help="JSONL file for the raw rows")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        device = torch.device(options.device)
        if options.fsdp:
            device = stack.enter_context(parallel.process_group(device))
        run(options, device)


def run(options: argparse.Namespace, device: torch.device) -> None:
    """Build the model, take the steps, and report on the first process."""
    is_cpu = device.type == "cpu"
    options.precision = options.precision or ("fp32" if is_cpu else "bf16")
    options.attention = options.attention or ("eager" if is_cpu else "sdpa")
    model = build(options).to(device).train()
    peak = options.peak_tflops or peak_tflops(device, None)
    if peak is None and is_cpu:
        peak = measured_peak(options.precision)
    work = Work(model)  # before sharding: it counts whole parameters
    parallel.prepare(
        model, attention=options.attention, compile=options.compile,
        checkpointing=options.checkpointing, bf16=options.precision == "bf16",
    )  # fmt: skip
    if options.fsdp:
        parallel.shard(model, bf16=options.precision == "bf16")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    draw = random.Random(0)
    examples = [draw_example(model, options, draw) for _ in range(options.examples)]
    batches = {
        "packed": packed_batches(examples, options, model.memory_token_id),
        "padded": padded_batches(examples, options, model.memory_token_id),
    }
    flops = useful_flops(model, work, examples, options.ratio)
    about_run = about(options, model, device, peak)
    rows: list[dict[str, Any]] = []
    for repeat in range(options.repeats + 1):  # the first one warms up and is not counted
        for method in METHODS:
            seconds, loss = step(model, optimizer, batches[method], options.precision, device)
            if repeat:
                row = counts(batches[method]) | {
                    "method": method, "repeat": repeat, "seconds": seconds, "loss": loss,
                    "useful_flops": flops,
                }  # fmt: skip
                rows.append(row | about_run)
    if parallel.is_main():
        if options.output:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            options.output.write_text(lines, encoding="utf-8")
        summarise(rows)


def build(options: argparse.Namespace) -> LCLM:
    """Return a model of random weights, of Qwen3's architecture, at the chosen sizes."""
    torch.manual_seed(0)
    shape: dict[str, Any] = SHAPES[options.shape]
    length = max(options.row_tokens, WINDOW, sum(options.context_tokens))
    config = Qwen3Config(**shape, max_position_embeddings=length, tie_word_embeddings=True)
    size = shape["vocab_size"]
    lclm_config = LCLMConfig(
        text_config=config.to_dict(),
        encoder_config=config.to_dict(),
        model_config=ModelConfig(
            compression_ratio=options.ratio, encoder_window_size=WINDOW
        ).to_dict(),
        memory_token_ids=[size - 3, size - 2, size - 1],
    )
    return LCLM(lclm_config, encoder=Qwen3Model(config), decoder=Qwen3ForCausalLM(config))


def draw_example(model: LCLM, options: argparse.Namespace, draw: random.Random) -> Example:
    """Return one span and a scored text after it, both of log-uniform length."""
    start, end, slot = model.config.memory_token_ids
    context, text = (
        round(shortest * (longest / shortest) ** draw.random())
        for shortest, longest in (options.context_tokens, options.text_tokens)
    )
    span = [draw.randrange(slot - 2) for _ in range(context)]
    ids = [start, slot, end, *(draw.randrange(slot - 2) for _ in range(text))]
    example = Example("interleaved", ids, [False] * 3 + [True] * text, [span], "random:0")
    if example.length(options.ratio) > options.row_tokens:
        raise SystemExit("examples are longer than a row; raise --row-tokens or lower the lengths")
    return example


def packed_batches(
    examples: Sequence[Example], options: argparse.Namespace, slot_id: int
) -> list[Batch]:
    """Put the longest examples first, each into the fullest row that has room for it."""
    rows: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda e: -e.length(options.ratio)):
        length = example.length(options.ratio)
        fitting = [index for index, left in enumerate(room) if left >= length]
        if not fitting:
            rows.append([])
            room.append(options.row_tokens)
            fitting = [len(rows) - 1]
        fullest = min(fitting, key=lambda index: room[index])
        rows[fullest].append(example)
        room[fullest] -= length
    return batches_of(rows, options.micro_rows, options, slot_id, options.row_tokens)


def padded_batches(
    examples: Sequence[Example], options: argparse.Namespace, slot_id: int
) -> list[Batch]:
    """Give each example its own row, as many to a pass as the packed positions allow."""
    longest = max(example.length(options.ratio) for example in examples)
    size = max(1, options.micro_rows * options.row_tokens // longest)
    return batches_of([[example] for example in examples], size, options, slot_id, None)


def batches_of(
    rows: Sequence[list[Example]],
    size: int,
    options: argparse.Namespace,
    slot_id: int,
    row_tokens: int | None,
) -> list[Batch]:
    """Lay rows out, `size` to a pass; without `row_tokens`, as wide as the longest of a pass."""
    made = [Row(f"random:{i}", options.ratio, members) for i, members in enumerate(rows)]
    batches = []
    for first in range(0, len(made), size):
        group = made[first : first + size]
        width = row_tokens or max(sum(e.length(r.ratio) for e in r.examples) for r in group)
        batches.append(collate(group, row_tokens=width, slot_id=slot_id))
    return batches


def step(
    model: LCLM,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    precision: str,
    device: torch.device,
) -> tuple[float, float]:
    """Take one optimizer step over all batches; return its seconds and its mean loss."""
    rank, num_ranks = parallel.world()
    num_scored = sum(batch.num_scored for batch in batches)
    # Ranks run equally many passes: where they do not divide, some run one that counts nothing.
    dealt = [(batch, 1.0) for batch in batches] + [(batches[0], 0.0)] * (-len(batches) % num_ranks)
    synchronise(device)
    started = time.perf_counter()
    total = torch.zeros((), device=device)
    for batch, weight in dealt[rank::num_ranks]:
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        with autocast:
            scores = model.score(**batch.inputs(device))
        loss = scores.loss_P.sum() * (weight * num_ranks / num_scored)
        loss.backward()
        total += loss.detach() / num_ranks
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    synchronise(device)
    seconds = time.perf_counter() - started
    return seconds, float(parallel.sum_over_ranks(total.cpu()[None])[0])


def synchronise(device: torch.device) -> None:
    """Wait for the device, and for the other processes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if dist.is_initialized():
        parallel.barrier()


def counts(batches: Sequence[Batch]) -> dict[str, int]:
    """Return what one step reads, with and without padding."""
    return {
        "passes": len(batches),
        "positions": sum(batch.num_positions for batch in batches),
        "padded_positions": sum(batch.input_ids_BT.numel() for batch in batches),
        "source_tokens": sum(batch.num_source_tokens for batch in batches),
        "scored_tokens": sum(batch.num_scored for batch in batches),
    }


def useful_flops(model: LCLM, work: Work, examples: Sequence[Example], ratio: int) -> float:
    """Return the FLOPs that one step over the examples needs, however they are laid out."""
    spans = [span for example in examples for span in example.spans]
    windows = [min(WINDOW, len(span) - i) for span in spans for i in range(0, len(span), WINDOW)]
    lengths = [example.length(ratio) for example in examples]
    weights = work.of(
        source_tokens=sum(map(len, spans)),
        latents=sum(-(-len(span) // ratio) for span in spans),
        positions=sum(lengths),
        scored=sum(sum(example.is_scored) for example in examples),
    )
    return (
        weights
        + attention_flops(model.encoder.body.config, windows)
        + attention_flops(model.decoder.config, lengths)
    )


def attention_flops(config: Any, lengths: Sequence[int]) -> float:
    """Return what causal attention over sequences costs, forward and backward."""
    width = config.num_attention_heads * config.head_dim * config.num_hidden_layers
    return float(3 * 2 * width * sum(length**2 for length in lengths))


def measured_peak(precision: str) -> float:
    """Return the best TFLOP/s of a large matrix product on this CPU."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(2, MATMUL, MATMUL).to(dtype).unbind(0)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - started)
    return 2 * MATMUL**3 / min(times) / 1e12


def about(
    options: argparse.Namespace, model: LCLM, device: torch.device, peak: float | None
) -> dict[str, Any]:
    """Say where a row comes from."""
    is_cuda = device.type == "cuda"
    chosen = {name: value for name, value in vars(options).items() if name != "output"}
    return chosen | {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "processes": parallel.world()[1],
        "device": torch.cuda.get_device_name(device) if is_cuda else "cpu",
        "peak_tflops": peak,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "octavo": octavo.__version__,
    }


def summarise(rows: Sequence[dict[str, Any]]) -> None:
    """Print medians: speeds of all processes together, and MFU of each."""
    line = "{:>7} {:>7} {:>10} {:>12} {:>12} {:>9} {:>7}\n"
    head = ("method", "passes", "s / step", "positions/s", "with pad/s", "source/s", "MFU")
    sys.stdout.write(line.format(*head))
    seconds = {}
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        first = own[0]
        took = seconds[method] = statistics.median(row["seconds"] for row in own)
        mfu = "-"
        if first["peak_tflops"]:
            peak = first["peak_tflops"] * 1e12 * first["processes"]
            mfu = f"{first['useful_flops'] / took / peak:.1%}"
        speeds = [
            f"{first[name] / took:.0f}"
            for name in ("positions", "padded_positions", "source_tokens")
        ]
        sys.stdout.write(line.format(method, first["passes"], f"{took:.3f}", *speeds, mfu))
    sys.stdout.write(f"packed is {seconds['padded'] / seconds['packed']:.2f}x as fast as padded\n")


if __name__ == "__main__":
    main()
