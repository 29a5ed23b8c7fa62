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

measure() {  # measure PYTHON METHOD... -- TASK... [OPTION...]
  local python="$1" methods=()
  shift
  while [ "$1" != -- ]; do methods+=(--method "$1"); shift; done
  shift
  "$python" -m octavo eval "$@" "${methods[@]}" "${common[@]}"
}
here=.venv/bin/python there=.venv-kvpress/bin/python
prompts=(full none truncate-left octavo octavo@2 bm25)
presses=(snapkv expected-attention)

first_lane() {
  measure $here full none octavo octavo@2 shuffled -- reconstruction --length 256 --limit 24
  measure $here full none octavo octavo@2 shuffled -- perplexity --length 512 --limit 24
  measure $here "${prompts[@]}" truncate-middle shuffled@4 -- squad --limit 30
  measure $here "${prompts[@]}" -- ruler --length 1024 --length 2048 --limit 3
  measure $here "${prompts[@]}" -- key_value --length 1024 --length 2048 --limit 6
  measure $here full none octavo truncate-left -- gsm8k/whole --limit 4
}
second_lane() {
  measure $there "${presses[@]}" kvzip -- squad --limit 30
  measure $there "${presses[@]}" -- ruler --length 1024 --length 2048 --limit 3
  measure $there "${presses[@]}" -- key_value --length 1024 --length 2048 --limit 6
  measure $there "${presses[@]}" kvzip@4 -- gsm8k/whole --limit 4
}
# KVzip reads a context again at six times the cost of a prefill: fewer items, from both lanes.
kvzip() {
  measure $there kvzip -- ruler key_value --length 1024 --limit 2
  measure $there kvzip -- ruler key_value --length 2048 --limit 1
}

(first_lane; kvzip) & first=$!
(second_lane; kvzip) & second=$!
wait "$first"; wait "$second"
.venv/bin/octavo report "$out" -o "$out/report"
