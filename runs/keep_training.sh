#!/usr/bin/env bash
# Train the default model a little more, whenever a core is idle: runs/keep_training.sh DATA_FOLDER [STEPS]
# DATA_FOLDER holds the .jsonl.zst files that runs/keep_training.toml names. Goes on from the newest state:
# an unfinished leg in runs/smol, else the last finished one, else the shipped weights, with STEPS (500) more
# steps. One niced core and at most 6 GB; it saves every few minutes, so stop it at any moment (Ctrl-C,
# SIGTERM, even kill -9) and run it again. Ships nothing: see runs/README.md.
set -euo pipefail
data="$(cd "${1:?usage: runs/keep_training.sh DATA_FOLDER [STEPS]}" && pwd)"
steps="${2:-500}"
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup"

# A leg is a folder runs/smol/leg-N; it is finished once it has exported.
leg=1 start=src/octavo/assets/smol
while [ -e "runs/smol/leg-$leg/sft/export/model_config.json" ]; do
  start="runs/smol/leg-$leg/sft/export"
  leg=$((leg + 1))
done
out="runs/smol/leg-$leg"
if [ -e "$out/leg" ]; then
  read -r start seed steps < "$out/leg"  # an unfinished leg keeps what it began with
  state="going on with leg $leg"
else
  seed=$(date +%s)  # other rows in every leg, also where the legs before are not on this machine
  mkdir -p "$out"
  echo "$start $seed $steps" > "$out/leg.tmp" && mv "$out/leg.tmp" "$out/leg"
  state="beginning leg $leg"
fi
echo "$state: $steps steps from $start, seed $seed; log in $out/log.jsonl"

ulimit -d $((6 * 1024 * 1024))  # private memory, in KiB: fail here rather than push others out
export OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1
pin=(nice -n 10)
if command -v taskset > /dev/null; then pin+=(taskset -c "$(($(nproc) - 1))"); fi
status=0
"${pin[@]}" .venv/bin/octavo train runs/keep_training.toml --resume --set "data.root=$data" \
  --set "output=$out" --set "seed=$seed" --set "model.start=$start" --set "stages.sft.steps=$steps" || status=$?

.venv/bin/python - "$out" <<'PY'
"""Say in one line how far the leg has come."""
import json, sys
from pathlib import Path

log = Path(sys.argv[1]) / "log.jsonl"
rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
steps = [row for row in rows if "loss" in row]
last = steps[-20:]
mean = sum(row["loss"] for row in last) / len(last) if last else float("nan")
print(f"{sys.argv[1]}: {len(steps)} steps done, mean loss of the last {len(last)}: {mean:.3f}")
PY
exit "$status"
