#!/usr/bin/env bash
# Compare ways of answering from a long text: runs/ask.sh DATA_FOLDER [OUT] [ITEMS]
# DATA_FOLDER holds paulgraham_haystack and squad_v1.1_dev, each a .jsonl.zst. With one item a needle task and ten
# questions of SQuAD (the default) about half an hour on one free core; interrupt and rerun at will.
set -euo pipefail
data="$(cd "${1:?usage: runs/ask.sh DATA_FOLDER [OUT] [ITEMS]}" && pwd)"
out="$(realpath -m "${2:-runs/out/ask}")"
items="${3:-1}"
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup"
export OMP_NUM_THREADS=1
needles=(niah_single_1 niah_single_2 niah_single_3 niah_multikey_1 niah_multikey_2 niah_multikey_3 niah_multivalue niah_multiquery)
common=(
  -o "$out" --dtype float32
  --data "ruler.essays=$data/paulgraham_haystack.jsonl.zst" --data "squad=$data/squad_v1.1_dev.jsonl.zst"
)
methods=()
for method in "octavo-agent@16[retrieval]" "octavo-agent@16[hybrid]" "octavo-agent@16[model]" passages@8 bm25@8 octavo@2 octavo@16 raw none; do
  methods+=(--method "$method")
done
.venv/bin/octavo eval "${needles[@]/#/ruler/}" --length 2048 --limit "$items" "${common[@]}" "${methods[@]}"
.venv/bin/octavo eval "${needles[@]/#/ruler/}" --length 4096 --limit "$items" "${common[@]}" \
  --method "octavo-agent@16[retrieval]" --method passages@8 --method octavo@2 --method raw
.venv/bin/octavo eval squad-20 --limit "$((10 * items))" "${common[@]}" "${methods[@]}"
.venv/bin/python benchmarks/ask_table.py "$out/rows.jsonl"
