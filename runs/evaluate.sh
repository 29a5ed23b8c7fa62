#!/usr/bin/env bash
# Measure the shipped model against what one would use instead: runs/evaluate.sh DATA_FOLDER [OUT]
# DATA_FOLDER holds squad_v1.1_dev, squad_v2.0_dev, gsm8k_test, kv_retrieval_75, multihop_mini_ircot,
# paulgraham_haystack and wikitext2_valid_test, each a .jsonl.zst. About an hour on two cores with AMX
# (hours without); interrupt and rerun at will. The report comes to OUT/report.
set -euo pipefail
data="$(cd "${1:?usage: runs/evaluate.sh DATA_FOLDER [OUT]}" && pwd)"
out="$(realpath -m "${2:-runs/out/smol}")"
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup"
scripts/kvpress-env
mkdir -p "$out"
hotpot="$(dirname "$out")/hotpot.json"
.venv/bin/python runs/hotpot.py "$data/multihop_mini_ircot.jsonl.zst" "$hotpot"

# bf16 where the processor has it; elsewhere it is emulated, and slower than fp32.
dtype=float32
if grep -qE 'amx_bf16|avx512_bf16' /proc/cpuinfo 2>/dev/null; then dtype=bfloat16; fi
export OMP_NUM_THREADS=1  # two processes share two cores
common=(
  -o "$out" --dtype "$dtype" --ratio 4 --ratio 8 --ratio 16
  --data "ruler.essays=$data/paulgraham_haystack.jsonl.zst"
  --data "ruler.squad=$data/squad_v2.0_dev.jsonl.zst"
  --data "ruler.hotpot=$hotpot"
  --data "squad=$data/squad_v1.1_dev.jsonl.zst"
  --data "key_value=$data/kv_retrieval_75.jsonl.zst"
  --data "gsm8k=$data/gsm8k_test.jsonl.zst"
  --data "text=$data/wikitext2_valid_test.jsonl.zst"
)

here=.venv/bin/python there=.venv-kvpress/bin/python
plain="raw none truncate-left octavo octavo@2 bm25"
presses="snapkv expected-attention"
jobs=(  # python | methods | tasks
  "$here | raw none octavo octavo@2 shuffled | reconstruction --length 256 --limit 24"
  "$here | raw none octavo octavo@2 shuffled | perplexity --length 512 --limit 24"
  "$here | $plain truncate-middle shuffled@4 | squad --limit 30"
  "$here | $plain | ruler --length 1024 --length 2048 --limit 3"
  "$here | $plain | key_value --length 1024 --length 2048 --limit 6"
  "$here | raw none octavo truncate-left | gsm8k/whole --limit 2"
  # KVzip reads a context again at six times the cost of a prefill: fewer items.
  "$there | kvzip | ruler --length 2048 --limit 1"
  "$there | kvzip | ruler key_value --length 1024 --limit 1"
  "$there | $presses kvzip@4 | gsm8k/whole --limit 2"
  "$there | $presses | key_value --length 1024 --length 2048 --limit 6"
  "$there | $presses | ruler --length 1024 --length 2048 --limit 3"
  "$there | $presses kvzip | squad --limit 30"
)

run_job() {
  local python methods tasks options=() method
  IFS='|' read -r python methods tasks <<< "$1"
  for method in $methods; do options+=(--method "$method"); done
  # shellcheck disable=SC2086  # tasks and their options are words
  $python -m octavo eval $tasks "${options[@]}" "${common[@]}"
}
forwards() { for job in "${jobs[@]}"; do run_job "$job"; done; }
backwards() { for ((at = ${#jobs[@]} - 1; at >= 0; at--)); do run_job "${jobs[at]}"; done; }

# From both ends: what one has done or claimed, the other leaves out.
forwards & first=$!
backwards & second=$!
wait "$first"; wait "$second"
.venv/bin/octavo report "$out" -o "$out/report"
