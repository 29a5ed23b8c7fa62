"""Weights on disk: the published layout, LoRA factors on a base, and new models out of any two.

Read in this order: `layout` (a checkpoint folder), `halves` (decoder and encoder), `base` (what
LoRA factors stand on), `assembly` (a model out of two), `fingerprint`.
"""
