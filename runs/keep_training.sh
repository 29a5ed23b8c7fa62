#!/usr/bin/env bash
# Train the default model a little more, whenever a core is idle: runs/keep_training.sh DATA_FOLDER [STEPS] [OPTION...]
# DATA_FOLDER holds the .jsonl.zst files that runs/keep_training.toml names. Goes on from the newest state:
# an unfinished leg in runs/smol, else the last finished one, else the shipped weights, with STEPS (500) more
# steps. One niced core and at most 6 GB; it saves every few minutes, so stop it at any moment (Ctrl-C,
# SIGTERM, even kill -9) and run it again. OPTIONs are those of `octavo train`, as --set measure_every=50.
# runs/legs.py shows whether the legs join, and their held-out curves in one picture.
set -euo pipefail
data="$(cd "${1:?usage: runs/keep_training.sh DATA_FOLDER [STEPS]}" && pwd)"
steps="${2:-500}"
options=("${@:3}")
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

pin=(nice -n 10)  # and the last of the cores that this shell may use
if command -v taskset > /dev/null; then pin+=(taskset -c "$(taskset -pc $$ | grep -oE '[0-9]+$')"); fi
export OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 MALLOC_ARENA_MAX=1
train() {
  "${pin[@]}" .venv/bin/octavo train runs/keep_training.toml --resume --set "data.root=$data" \
    --set "output=$out" --set "seed=$seed" --set "model.start=$start" --set "stages.sft.steps=$steps" \
    ${options[@]+"${options[@]}"} &
  trainer=$!
}
resident_kib() {  # 0 once it has ended
  local kib
  kib=$(awk '/^VmRSS/ {print $2}' "/proc/$trainer/status" 2> /dev/null || true)
  echo "${kib:-0}"
}

# SIGTERM makes the trainer finish its step and save. Memory is watched rather than capped: a cap counts what
# is only reserved, and an allocation that fails loses the steps since the last save.
is_stopped=
stop() { is_stopped=yes; kill -TERM "$trainer" 2> /dev/null || true; }
trap stop TERM INT
status=0
train
while kill -0 "$trainer" 2> /dev/null; do
  sleep 5 & wait $! || true
  if [ "$(resident_kib)" -gt $((11 * 1024 * 512)) ]; then  # 5.5 GiB
    echo "the trainer holds more than 5.5 GiB: saving, and starting it afresh"
    kill -TERM "$trainer" && { wait "$trainer" || true; }
    [ -n "$is_stopped" ] || train
  fi
done
wait "$trainer" || status=$?

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
