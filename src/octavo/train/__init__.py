"""Train a compressor: the loop, and the four stages of a run.

Read in this order: `batch`, `run`, `loop`, `stages`; then `measure`, `checkpoints`, `parallel`.
"""
