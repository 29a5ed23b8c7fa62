"""Print what ways of answering read and get right, and what their likelihood tells.

python benchmarks/ask_table.py ROWS.jsonl     (rows of `octavo eval`; runs/ask.sh makes them)
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from octavo.confidence import auc, auc_within
from octavo_evals.methods import label, sort_labels


def tokens_read(row: dict[str, Any]) -> int:
    """Return the positions that the decoder read and wrote, rounds of choosing included."""
    return row["prompt_tokens"] + row["new_tokens"] + row["notes"].get("positions", 0)


def seconds(row: dict[str, Any]) -> float:
    return row["compress_seconds"] + (row["ttft_seconds"] or 0) + (row["decode_seconds"] or 0)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("rows", type=Path)
lines = parser.parse_args().rows.read_text(encoding="utf-8").splitlines()
groups: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
tasks: dict[str, list[tuple[float, bool]]] = defaultdict(list)
for row in map(json.loads, lines):
    if row["skipped"] is None:
        group = row["task"].split("/")[0]
        groups[group][label(row["method"], row["ratio"])].append(row)
        if row["logprob"] is not None and row["notes"].get("recall") is not None:
            tasks[row["task"]].append((row["logprob"], row["score"] >= 0.5))
for group, methods in groups.items():
    print(f"{group:<26} items  score  recall  tokens read  rounds  seconds")
    for name in sort_labels(methods):
        rows = methods[name]
        recalls = [row["notes"]["recall"] for row in rows if "recall" in row["notes"]]
        recall = f"{fmean(recalls):6.0%}" if recalls else "     -"
        rounds = fmean(row["notes"].get("rounds", 1) for row in rows)
        print(
            f"  {name:<24} {len(rows):5} {fmean(row['score'] for row in rows):6.0%}  {recall}  "
            f"{fmean(map(tokens_read, rows)):11,.0f}  {rounds:6.1f}  "
            f"{fmean(map(seconds, rows)):7.1f}"
        )
columns = [tuple(zip(*pairs, strict=True)) for pairs in tasks.values()]
values = [value for pairs in tasks.values() for value, _ in pairs]
is_right = [right for pairs in tasks.values() for _, right in pairs]
pooled, within = auc(values, is_right), auc_within(columns)
shown = [f"{one:.2f}" if one is not None else "-" for one in (pooled, within)]
print(f"likelihood of answers from passages ({len(values)}, {sum(is_right)} right):")
print(f"  AUC pooled {shown[0]}, within a task {shown[1]}")
for threshold in (-0.02, -0.05, -0.1, -0.2, -0.4):
    above = [right for value, right in zip(values, is_right, strict=True) if value >= threshold]
    print(f"  above {threshold}: {sum(above)} of {len(above)} right")
