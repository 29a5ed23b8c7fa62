#!/usr/bin/env bash
# Measure `vllm serve` on a GPU: the paper's 0.6B encoder and 4B decoder with random weights, 4k to 1M source tokens at
# 4x and 16x, beside the same vLLM reading the raw text up to its 256k positions. Rows go to runs/out/vllm_gpu.jsonl.
# PYTHON is the interpreter of an environment with octavo[vllm] (CUDA).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p runs/out
exec "${PYTHON:-.venv-vllm/bin/python}" benchmarks/serve_vllm.py runs/out/shape-0.6b-4b runs/out/vllm_gpu.jsonl \
  --shape 0.6b-4b --lengths 4096 16384 65536 262144 1048576 --limit 261000 --ratios 4 16 --chats 1 8 32 128 \
  --flags "--max-model-len 262144 --max-num-batched-tokens 16384 ${FLAGS:-}"
