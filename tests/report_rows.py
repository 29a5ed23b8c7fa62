"""Made-up rows of an evaluation, for tests of the report: numbers that real ones might be."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RULER = (
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2",
    "niah_multikey_3", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
)  # fmt: skip
RATIOS = (4, 8, 16)
RIVALS = ("snapkv", "expected-attention", "kvzip", "bm25", "truncate-left", "truncate-middle")
SKILL = {
    "raw": 0.86, "none": 0.04, "octavo": 0.78, "snapkv": 0.42, "expected-attention": 0.7,
    "kvzip": 0.85, "bm25": 0.55, "truncate-left": 0.3, "truncate-middle": 0.33,
}  # fmt: skip
KV_BYTES = 23040


def labels(ratios: Sequence[int] = RATIOS) -> list[tuple[str, int | None]]:
    return [
        ("raw", None),
        ("none", None),
        *((method, ratio) for method in ("octavo", *RIVALS) for ratio in ratios),
    ]


def row(
    task: str, length: int | None, item: str, method: str, ratio: int | None, **more: Any
) -> Any:
    score = more.pop("score", 1.0)
    return {
        "task": task, "length": length, "id": item, "method": method, "ratio": ratio,
        "score": score, "metrics": {"score": score}, "answer": " 1234567.", "references": ["1"],
        "skipped": None, "context_tokens": 900, "prompt_tokens": 300, "latents": 0,
        "new_tokens": 9, "is_reused": False, "compress_seconds": 0.0, "ttft_seconds": 0.5,
        "decode_seconds": 0.4, "context_bytes": 0, "cache_bytes": 1000, "peak_bytes": 5_000_000,
        "is_masked": method == "kvzip", "seed": 42, "model": "smol", "fingerprint": "04b23f99aa",
        "device": "cpu", "dtype": "bfloat16", "metric": "match", "about": {},
        "versions": {"octavo": "0.2.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "machine": "Two cores, 2 threads",
    } | more  # fmt: skip


def _answer(rng: random.Random, task: str, size: int, method: str, ratio: int | None) -> Any:
    """Return the score, times and bytes of one answer."""
    skill = SKILL[method] - 0.03 * (size / 1024 - 1)
    skill -= 0.0 if ratio is None else 0.16 * (ratio / 4 - 1) ** 0.7
    if task in ("ruler/niah_single_3", "ruler/niah_multikey_3") and method == "octavo":
        skill -= 0.3
    if task in ("ruler/cwe", "ruler/fwe"):
        skill = 0.7 * skill + 0.15 * rng.random()
    tokens = size - 60
    slow = rng.lognormvariate(0, 0.08)
    read = tokens if ratio is None or method in ("kvzip", "snapkv") else tokens // ratio
    read = 60 if method == "none" else read
    fold = {"octavo": 0.12, "kvzip": 1.6, "snapkv": 0.65, "expected-attention": 0.7, "bm25": 0.01}
    prefill = 0.00055 * read + 0.02
    held = tokens if ratio is None or method == "kvzip" else tokens // ratio
    held = 0 if method in ("none", "bm25") else held
    return {
        "score": 1.0 if rng.random() < max(0.01, skill) else 0.0,
        "context_tokens": tokens, "prompt_tokens": read + 60,
        "latents": tokens // ratio if method == "octavo" and ratio else 0,
        "compress_seconds": slow * 0.00055 * tokens * fold.get(method, 0.0),
        "ttft_seconds": slow * prefill, "decode_seconds": slow * 0.03 * 9,
        "context_bytes": 1152 * (tokens // ratio) if method == "octavo" and ratio else 0,
        "cache_bytes": KV_BYTES * held, "peak_bytes": int(4e7 + 3 * KV_BYTES * read * slow),
    }  # fmt: skip


def many(num_items: int, lengths: Sequence[int] = (1024, 2048)) -> list[Any]:
    """Return rows of all kinds of tasks."""
    rng = random.Random(7)
    made = []
    plans = [(f"ruler/{task}", length) for length in lengths for task in RULER]
    plans += [("squad", None), ("key_value", 1024), ("gsm8k/whole", None)]
    for task, length in plans:
        for method, ratio in labels():
            for index in range(num_items):
                facts = _answer(rng, task, length or 700, method, ratio)
                is_reused = task == "squad" and index % 4 > 0 and method != "bm25"
                if is_reused:
                    facts |= {"compress_seconds": 0.0, "ttft_seconds": 0.02 * rng.uniform(0.9, 1.2)}
                metric = {"squad": "F1", "gsm8k/whole": "accuracy"}.get(task, "match")
                one = row(task, length, f"{index:04d}", method, ratio, **facts, metric=metric)
                one["is_reused"] = is_reused
                if task == "squad":
                    one["metrics"]["exact"] = float(one["score"] > 0.5 and index % 5 > 0)
                if rng.random() < 0.01:
                    one["answer"] = " \n"
                made.append(one)
    for task in ("reconstruction", "perplexity"):
        for method, ratio in [("raw", None), ("none", None), *(("octavo", r) for r in RATIOS)]:
            for index in range(num_items):
                base = {"raw": 0.97, "none": 0.1}.get(method, 0.99 - 0.02 * (ratio or 0))
                quarters = [min(1, max(0, base - 0.04 * q + rng.gauss(0, 0.03))) for q in range(4)]
                score = sum(quarters) / 4
                one = row(task, 512, f"{index:04d}", method, ratio, score=score)
                one["metrics"] |= {"nats": 4 * (1 - score), "exact": float(score > 0.98)}
                one["metrics"] |= {f"accuracy_q{q + 1}": v for q, v in enumerate(quarters)}
                timed = ("ttft_seconds", "decode_seconds", "cache_bytes", "compress_seconds")
                made.append(one | dict.fromkeys(timed) | {"answer": "", "metric": "token accuracy"})
    return made


def save(folder: Path, rows: Sequence[Any], name: str = "rows.jsonl") -> Path:
    """Write rows as the runner does, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
    (folder / name).write_text(text, encoding="utf-8")
    return folder
