"""octavo beside a plain transformers program that takes the steps of the method's public code.

The steps, read from LeonLixyz/LCLM (`latent_context/encoder.py`, `model.py`, `inference/hf.py`):
all windows of a text in one left-padded batch with a mask, through an `AutoModel`; a mean per
block; the adapter; the latents into the prompt's embeddings; `generate` of an
`AutoModelForCausalLM`. Attention is `sdpa` in both. Both read one folder of the published layout
and take turns in one process; greedy answers are compared. Peaks are of a process for each side.

    python benchmarks/against_reference.py benchmarks/against_reference_2core_202612.jsonl
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import octavo
from octavo.config import ModelConfig
from octavo.machine import Peak, describe_machine
from octavo.nn.adapter import Adapter
from octavo.weights.assembly import assemble_parts
from octavo.weights.base import ensure_base
from octavo.weights.layout import Checkpoint, load_adapter, write

WINDOW = 1024
TEXT = Path(__file__).parents[1] / "examples" / "king-solomons-mines-14.txt"
QUESTION = "\nWho tells the story?"
NEW_TOKENS = 8
Ask = Callable[[str, int], str]
"""From a text and how many tokens to answer with, to the answer."""


def make(folder: Path, ratio: int) -> None:
    """Write a model of the default's shape: six layers of its base, its base, a new adapter."""
    torch.manual_seed(0)
    settings = ModelConfig(compression_ratio=ratio, encoder_window_size=WINDOW)
    base = str(ensure_base())
    made = assemble_parts(base, base, settings, encoder_layers=6)
    write(Checkpoint(*made, "side by side", ""), folder)


def plain(folder: Path) -> Ask:
    """Return the steps of the public code on the parts of a folder."""
    encoder = AutoModel.from_pretrained(folder / "encoder", attn_implementation="sdpa")
    decoder = AutoModelForCausalLM.from_pretrained(folder / "decoder", attn_implementation="sdpa")
    settings = ModelConfig.read(folder)
    adapter = Adapter(settings, encoder, decoder)
    part = torch.nn.Module()
    part.adapter, part.residual = adapter, None
    load_adapter(part, folder)
    read = AutoTokenizer.from_pretrained(folder / "encoder")
    speak = AutoTokenizer.from_pretrained(folder / "decoder")
    slot = speak.convert_tokens_to_ids("<|memory|>")
    ratio = settings.compression_ratio

    @torch.inference_mode()
    def ask(text: str, count: int) -> str:
        source = read(text, add_special_tokens=False).input_ids
        latents_KD = adapter([encode(encoder, source, ratio, read.pad_token_id or 0)])[0]
        slots = "<|memory|>" * len(latents_KD)
        content = f"<|memory_start|>{slots}<|memory_end|>{QUESTION}"
        ids_T = torch.tensor(
            speak.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True,
                return_dict=False,
            )
        )  # fmt: skip
        embeds_TD = decoder.get_input_embeddings()(ids_T).clone()
        embeds_TD[ids_T == slot] = latents_KD
        answer = decoder.generate(
            inputs_embeds=embeds_TD[None], attention_mask=torch.ones(1, len(ids_T)),
            max_new_tokens=count, do_sample=False, pad_token_id=0,
        )  # fmt: skip
        return str(speak.decode(answer[0], skip_special_tokens=True))

    return ask


def encode(encoder: Any, source: list[int], ratio: int, pad: int) -> Tensor:
    """Return a pooled state for every block, from all windows in one batch."""
    windows = [source[at : at + WINDOW] for at in range(0, len(source), WINDOW)]
    longest = max(map(len, windows))
    ids_WL = torch.full((len(windows), longest), pad)
    mask_WL, positions_WL = torch.zeros_like(ids_WL), torch.zeros_like(ids_WL)
    for row, window in enumerate(windows):
        ids_WL[row, longest - len(window) :] = torch.tensor(window)
        mask_WL[row, longest - len(window) :] = 1
        positions_WL[row, longest - len(window) :] = torch.arange(len(window))
    hidden_WLE = encoder(
        input_ids=ids_WL, attention_mask=mask_WL, position_ids=positions_WL
    ).last_hidden_state
    pooled = []
    for row, window in enumerate(windows):
        hidden_LE = hidden_WLE[row, longest - len(window) :]
        blocks = range(0, len(window), ratio)
        pooled.append(torch.stack([hidden_LE[at : at + ratio].mean(0) for at in blocks]))
    return torch.cat(pooled)


def ours(folder: Path) -> Ask:
    """Return the door of octavo's users on the same folder, which keeps nothing of a text."""
    model = octavo.load(folder, device="cpu", dtype="float32")

    def ask(text: str, count: int) -> str:
        model.forget()
        content = [{"type": "memory", "text": text}, {"type": "text", "text": QUESTION}]
        asked = [{"role": "user", "content": content}]
        return model.generate(messages=asked, max_new_tokens=count).text

    return ask


SIDES: dict[str, Callable[[Path], Ask]] = {"octavo": ours, "plain": plain}


def a_text(tokens: int, tokenizer: Any) -> str:
    ids = tokenizer(TEXT.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
    while len(ids) < tokens:
        ids += ids
    text: str = tokenizer.decode(ids[:tokens])
    return text


def peak(folder: Path, side: str, tokens: int) -> int:
    """Return the bytes that a process of one side grew by while it answered for the first time."""
    code = [sys.executable, __file__, "--peak", side, str(folder), str(tokens)]
    return int(subprocess.run(code, check=True, capture_output=True, text=True).stdout.split()[-1])


def grow(side: str, folder: Path, tokens: int) -> None:
    ask = SIDES[side](folder)
    text = a_text(tokens, AutoTokenizer.from_pretrained(folder / "decoder"))
    ask("A word.", 1)
    with Peak(torch.device("cpu")) as peak_of:
        ask(text, 1)
    print(peak_of.bytes)


def compare(output: Path, lengths: list[int], ratios: list[int], repeats: int) -> None:
    rows = []
    for ratio in ratios:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "model"
            make(folder, ratio)
            sides = {side: build(folder) for side, build in SIDES.items()}
            tokenizer = AutoTokenizer.from_pretrained(folder / "decoder")
            for tokens in lengths:
                text = a_text(tokens, tokenizer)
                spoken = {ask(text, NEW_TOKENS) for ask in sides.values()}
                seconds: dict[str, list[float]] = {side: [] for side in sides}
                for _ in range(repeats):
                    for side, ask in sides.items():
                        started = time.perf_counter()
                        ask(text, 1)
                        seconds[side].append(time.perf_counter() - started)
                peaks = {side: peak(folder, side, tokens) for side in sides}
                row = {
                    "tokens": tokens, "ratio": ratio, "seconds": seconds, "peak_bytes": peaks,
                    "same_answer": len(spoken) == 1, "machine": describe_machine(),
                }  # fmt: skip
                rows.append(row)
                first = {side: statistics.median(times) for side, times in seconds.items()}
                sooner = first["plain"] / first["octavo"]
                lower = peaks["plain"] / peaks["octavo"]
                print(
                    f"{tokens:6} tokens {ratio:2}x  octavo {first['octavo']:.2f} s, "
                    f"{sooner:.2f}x sooner; peak {lower:.1f}x lower; same: {row['same_answer']}",
                    flush=True,
                )
    output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192, 16384])
    parser.add_argument("--ratios", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    if arguments.peak:
        side, folder, tokens = arguments.peak
        grow(side, Path(folder), int(tokens))
    else:
        compare(arguments.output, arguments.lengths, arguments.ratios, arguments.repeats)


if __name__ == "__main__":
    main()
