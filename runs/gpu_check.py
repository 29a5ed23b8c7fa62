"""See that every kind of attention installed here reads as the CPU does: runs/gpu_check.py.

The shipped model folds a letter and answers about it, in fp32 on the CPU and then in fp32 and bf16
on the best device there is, by each implementation that transformers can switch to. Greedy answers
in fp32 must be equal, latents close; exits with 1 where one is not.
"""

import sys
from pathlib import Path

import torch

import octavo
from octavo.machine import find_device

LETTER = Path(__file__).parents[1] / "examples" / "boiler-letter.txt"
QUESTION = "Who will install the boiler?"
IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
CLOSE = {"float32": 0.01, "bfloat16": 0.1}
"""Largest distance of latents, over their size."""


def main() -> int:
    """Compare, print a line for each, and return how many differ (0 or 1)."""
    text = LETTER.read_text(encoding="utf-8")
    own = octavo.load(device="cpu", dtype="float32")
    wanted = own.compress(text, ratio=2).latents
    answer = own.generate(QUESTION, own.compress(text, ratio=2), max_new_tokens=16).text
    device, has_failed = find_device(None).type, False
    for dtype, most in CLOSE.items():
        model = octavo.load(device=device, dtype=dtype)
        for name in IMPLEMENTATIONS:
            try:
                model.lclm.set_attn_implementation(name)
                folded = model.compress(text, ratio=2)
            except (ImportError, ValueError, NotImplementedError) as error:
                print(f"{device} {dtype} {name}: not here ({str(error).splitlines()[0][:70]})")
                continue
            model.forget()
            distance = float(torch.norm(folded.latents.float() - wanted) / torch.norm(wanted))
            said = model.generate(QUESTION, folded, max_new_tokens=16).text
            is_right = distance <= most and (dtype == "bfloat16" or said == answer)
            has_failed = has_failed or not is_right
            verdict = "right" if is_right else f"WRONG: {said!r}, wanted {answer!r}"
            print(f"{device} {dtype} {name}: latents off by {distance:.4f}; {verdict}")
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
