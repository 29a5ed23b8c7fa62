"""Ask `vllm serve` about documents as latents, and the same vLLM about the raw text; rows as JSONL.

Usage: python benchmarks/serve_vllm.py CHECKPOINT ROWS [options], where setup-vllm was

CHECKPOINT is a folder that octavo wrote; raw text is read by its `decoder/` alone, in a server with
the same flags. `--shape 0.6b-4b` makes CHECKPOINT anew: the paper's sizes without weights, which
vLLM then draws at random (`--load-format dummy`): speed and memory need no others.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PORT = 18477
TEXT = Path(__file__).parents[1] / "examples" / "king-solomons-mines-14.txt"
COUNTERS = ("prefix_cache_hits_total", "mm_cache_queries_total", "mm_cache_hits_total")
# Qwen3-Embedding-0.6B and Qwen3-4B-Instruct-2507, as the paper pairs them (wire-format 1.3).
QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "head_dim": 128,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
SHAPES = {
    "encoder": {
        **QWEN3,
        "architectures": ["Qwen3Model"],
        "num_hidden_layers": 28,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 3072,
        "rope_theta": 1e6,
        "max_position_embeddings": 32768,
    },
    "decoder": {
        **QWEN3,
        "architectures": ["Qwen3ForCausalLM"],
        "num_hidden_layers": 36,
        "hidden_size": 2560,
        "num_attention_heads": 32,
        "intermediate_size": 9728,
        "rope_theta": 5e6,
        "max_position_embeddings": 262144,
    },
}


def make_shape(folder: Path) -> None:
    """Write a checkpoint without weights, with the tokenizers of the shipped model."""
    import octavo

    model = octavo.load(engine="fake")
    shutil.rmtree(folder, ignore_errors=True)
    for half, config in SHAPES.items():
        (folder / half).mkdir(parents=True)
        (folder / half / "config.json").write_text(json.dumps(config))
        getattr(model.prompts, f"{half}_tokenizer").save_pretrained(folder / half)
    settings = {
        "compression_ratio": 16,
        "encoder_window_size": 1024,
        "pooling": "mean",
        "encoder_mask_type": "causal",
        "boundary_overlap": 0,
        "adapter_type": "mlp",
    }
    (folder / "model_config.json").write_text(json.dumps(settings))
    (folder / "octavo.json").write_text(json.dumps({"format_version": 1, "ratios": [4, 8]}))


@contextmanager
def serving(folder: Path, flags: list[str]) -> Iterator[int]:
    """Start a server and wait for it; yield the id of its process."""
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(folder), "--port"]
    command += [str(PORT), "--host", "127.0.0.1", "--served-model-name", "model", *flags]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 1800
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the server did not start: {' '.join(command)}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield process.pid
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def counters() -> dict[str, float]:
    """Return vLLM's own counts so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics") as page:
        text = page.read().decode()
    return {
        name: sum(float(v) for v in re.findall(rf"^vllm:{name}{{.*}} (\S+)$", text, re.M))
        for name in COUNTERS
    }


def resident_bytes(group: int) -> int:
    """Return what the server's processes hold, on the CPU's side."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if os.getpgid(int(stat.parent.name)) == group:
                total += int((stat.parent / "statm").read_text().split()[1]) * 4096
        except (OSError, ValueError):
            continue
    return total


def ask(content: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    """Ask once; return seconds to the first token and in all, and the usage."""
    body = {
        "model": "model",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    started, first, usage = time.perf_counter(), 0.0, {}
    with urllib.request.urlopen(request, timeout=3600) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event["choices"] and event["choices"][0]["delta"].get("content") and not first:
                first = time.perf_counter() - started
            usage = event.get("usage") or usage
    return {"first": first, "total": time.perf_counter() - started, "usage": usage}


def parts(text: str, question: str, ratio: int) -> list[dict[str, Any]]:
    """Return a document and a question; ratio 1 is the raw text."""
    document: dict[str, Any] = {"type": "text", "text": text}
    if ratio > 1:
        document["memory"] = {"ratio": ratio}
    return [document, {"type": "text", "text": question}]


def measure(options: argparse.Namespace, ratio: int, pid: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of one server at one ratio."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint / "encoder")
    chapter = TEXT.read_text(encoding="utf-8")
    ids = tokenizer(chapter, add_special_tokens=False)["input_ids"]
    base = {"kind": "raw" if ratio == 1 else "octavo", "ratio": ratio}
    for length in options.lengths:
        if (length if ratio == 1 else length // ratio) > options.limit:
            continue
        found: dict[str, list[Any]] = {"first": [], "second": []}
        for repeat in range(options.repeats):
            # From another place each time: nothing of an earlier round or length is found again.
            whole = ids * (length // len(ids) + 2)
            shift = 101 * repeat + 13 * ratio + length // 64
            text = tokenizer.decode(whole[shift : shift + length])
            for which, question in (("first", "Who tells it?"), ("second", "What is seen?")):
                before = counters()
                one = ask(parts(text, question, ratio), 8)
                after = counters()
                now = {name: after[name] - before[name] for name in COUNTERS}
                found[which].append({**one, **now})
        for which, many in found.items():
            new = [m["mm_cache_queries_total"] - m["mm_cache_hits_total"] for m in many]
            yield {
                **base,
                "what": f"{which} question",
                "source_tokens": length,
                "prompt_tokens": many[0]["usage"]["prompt_tokens"],
                "first_token_seconds": [round(m["first"], 3) for m in many],
                "windows_encoded": new,
                "cached_positions": [m["prefix_cache_hits_total"] for m in many],
                "resident_bytes": resident_bytes(pid),
            }
    short = tokenizer.decode(ids[:1024])
    for chats in options.chats:
        text = f"{chats} chats at {ratio}. {short}"
        ask(parts(text, "Ready?", ratio), 2)
        started = time.perf_counter()
        with ThreadPoolExecutor(chats) as threads:
            many = list(
                threads.map(
                    lambda n, text=text: ask(parts(text, f"Question {n}?", ratio), 32), range(chats)
                )
            )
        seconds = time.perf_counter() - started
        yield {
            **base,
            "what": "chats at once",
            "chats": chats,
            "source_tokens": 1024,
            "tokens_per_second": round(32 * chats / seconds, 1),
            "median_first_token_seconds": round(statistics.median(m["first"] for m in many), 3),
            "resident_bytes": resident_bytes(pid),
        }


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--shape", choices=["0.6b-4b"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 7680])
    parser.add_argument("--limit", type=int, default=7700, help="positions a document may take")
    parser.add_argument("--ratios", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--chats", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--flags", default="", help="further flags of vllm serve, in one string")
    options = parser.parse_args()
    flags = options.flags.split()
    if options.shape:
        make_shape(options.checkpoint)
        flags += ["--load-format", "dummy", "--config-format", "octavo"]
    with options.rows.open("a", encoding="utf-8") as rows:
        for ratios, folder in ((options.ratios, options.checkpoint), ([1], None)):
            own = flags
            if folder is None:  # the decoder alone
                folder = options.checkpoint / "decoder"
                own = [flag for flag in flags if flag not in ("--config-format", "octavo")]
            with serving(folder, own) as pid:
                for ratio in ratios:
                    for row in measure(options, ratio, pid):
                        rows.write(json.dumps(row) + "\n")
                        rows.flush()


if __name__ == "__main__":
    main()
