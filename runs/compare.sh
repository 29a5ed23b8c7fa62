#!/usr/bin/env bash
# Measure the shipped model on few items, and against rows of another on the same items: runs/compare.sh DATA_FOLDER [OUT] [ROWS]
# DATA_FOLDER holds paulgraham_haystack, squad_v1.1_dev, squad_v2.0_dev, multihop_mini_ircot and wikitext2_valid_test, each a
# .jsonl.zst; ROWS is a folder that an earlier call, or runs/evaluate.sh, wrote. The README's RULER and copying come from
# it. About an hour on one core; interrupt and rerun at will. The report comes to OUT/report.
set -euo pipefail
data="$(cd "${1:?usage: runs/compare.sh DATA_FOLDER [OUT] [ROWS]}" && pwd)"
out="$(realpath -m "${2:-runs/out/compare}")"
before=("${@:3}")
for ((at = 0; at < ${#before[@]}; at++)); do before[at]="$(realpath "${before[at]}")"; done
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup"
export OMP_NUM_THREADS=1
mkdir -p "$out"
.venv/bin/python runs/hotpot.py "$data/multihop_mini_ircot.jsonl.zst" "$out/hotpot.json"
common=(
  -o "$out" --dtype float32 --ratio 4 --ratio 8 --ratio 16 --method octavo --method octavo@2
  --data "ruler.essays=$data/paulgraham_haystack.jsonl.zst" --data "ruler.squad=$data/squad_v2.0_dev.jsonl.zst"
  --data "ruler.hotpot=$out/hotpot.json" --data "squad=$data/squad_v1.1_dev.jsonl.zst"
  --data "text=$data/wikitext2_valid_test.jsonl.zst"
)
.venv/bin/octavo eval perplexity --length 512 --limit 24 --method raw --method none "${common[@]}"
.venv/bin/octavo eval squad --limit 30 --method raw --method none "${common[@]}"
.venv/bin/octavo eval reconstruction --length 256 --limit 12 "${common[@]}"
.venv/bin/octavo eval ruler --length 1024 --length 2048 --limit 3 --method raw --method none "${common[@]}"
.venv/bin/octavo report "${before[@]}" "$out" -o "$out/report"
