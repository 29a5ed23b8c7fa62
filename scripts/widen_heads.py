"""Copy a checkpoint with decoder heads twice as wide that compute the same.

Usage: python scripts/widen_heads.py CHECKPOINT COPY

vLLM's attention on a CPU has no heads of 16 channels, which the golden checkpoints have. The
channels of every head are spread over the first halves of the two rotary halves; the rest is zero:

    (a b | c d)  ->  (a b 0 0 | c d 0 0)

A rotary base squared keeps the angles of channels that stand where they stood. Scores shrink by the
square root of two, since the softmax divides by the width; norms over a head see half the mean
square, which doubles them. What is left over goes into the keys.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def widen(source: Path, target: Path) -> None:
    """Write `target`, whose decoder answers as that of `source`."""
    shutil.copytree(source, target)
    folder = target / "decoder"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    width, hidden = config["head_dim"], config["hidden_size"]
    state = load_file(folder / "model.safetensors")
    has_norms = any(".q_norm." in name for name in state)
    key_scale = 2**-0.5 if has_norms else 2**0.5
    for name, tensor in state.items():
        part = name.rsplit(".", 2)[1]
        scale = key_scale if part == ("k_norm" if has_norms else "k_proj") else 1.0
        if part in ("q_proj", "k_proj", "v_proj"):
            spread = _spread(tensor.view(-1, width, hidden), dim=1).flatten(0, 1)
        elif part == "o_proj":
            spread = _spread(tensor.view(hidden, -1, width), dim=2).flatten(1)
        elif part in ("q_norm", "k_norm"):
            spread = _spread(tensor, dim=0)
        else:
            continue
        state[name] = (spread * scale).contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config["head_dim"] = 2 * width
    for rotary in (config, config.get("rope_parameters") or {}):
        if "rope_theta" in rotary:
            rotary["rope_theta"] = float(rotary["rope_theta"]) ** 2
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _spread(tensor: Tensor, dim: int) -> Tensor:
    """Put zeros behind each half of a dimension."""
    halves = tensor.chunk(2, dim)
    nothing = torch.zeros_like(halves[0])
    return torch.cat([halves[0], nothing, halves[1], nothing], dim)


if __name__ == "__main__":
    widen(Path(sys.argv[1]), Path(sys.argv[2]))
