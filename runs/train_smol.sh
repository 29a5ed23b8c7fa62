#!/usr/bin/env bash
# Rebuild the shipped default model, from data to assets: runs/train_smol.sh DATA_FOLDER
# DATA_FOLDER holds the .jsonl.zst files that src/octavo/recipes/smol.toml names. Two and a half hours
# on one CPU core with AMX, minutes on an accelerator; interrupt and rerun at will. Then measure what
# came out: runs/evaluate.sh.
set -euo pipefail
data="$(cd "${1:?usage: runs/train_smol.sh DATA_FOLDER}" && pwd)"
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup"
.venv/bin/octavo train smol --resume --set "data.root=$data" --set output=runs/smol
.venv/bin/python runs/ship.py runs/smol/sft/export src/octavo/assets/smol
