#!/usr/bin/env bash
# Train a published-size compressor on many machines: runs/train_paper.sh RATIO DATA_FOLDER
# Run the same line on every node with NODES, NODE (0..) and HEAD (host of node 0) set; GPUS per node
# defaults to 8. Prepare the rows once beforehand, where all nodes can read them:
#   octavo data prepare paper -o DATA_FOLDER/rows --processes 32 --set 'data.train=[…]'
set -euo pipefail
ratio="${1:?usage: runs/train_paper.sh RATIO DATA_FOLDER}"
data="${2:?usage: runs/train_paper.sh RATIO DATA_FOLDER}"
exec torchrun --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" --nproc-per-node "${GPUS:-8}" \
  --rdzv-backend c10d --rdzv-endpoint "${HEAD:-localhost}:29500" \
  -m octavo train paper --resume \
  --set "model.compression_ratio=$ratio" --set "model.name=paper-${ratio}x" \
  --set "data.rows=$data/rows" --set "output=$data/runs/paper-${ratio}x"
