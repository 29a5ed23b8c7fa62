"""Train a model to ask for the parts it needs: traces of skimming, then the sft stage's loss.

python examples/train_expand.py OUT TEXT... [--model FOLDER] [--steps 20]
"""

import argparse
import random
from pathlib import Path

import torch

import octavo
from octavo.data.builders import BUILDERS
from octavo.data.documents import Document
from octavo.data.examples import ExampleMaker
from octavo.data.sources import Library
from octavo.recipe import MixtureSection

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("out", type=Path)
parser.add_argument("texts", type=Path, nargs="+", help="prose to hide facts in")
parser.add_argument("--model", help="a checkpoint folder or hub id; by default the shipped model")
parser.add_argument("--steps", type=int, default=20)
asked = parser.parse_args()

model = octavo.load(asked.model, device="cpu")
maker = ExampleMaker(model.prompts)
prose = [Document(path.read_text(encoding="utf-8"), origin=path.name) for path in asked.texts]
library, mixture = Library({"prose": prose}), MixtureSection(context_tokens=[150, 1200])
rng, ratio = random.Random(0), model.config.compression_ratio
optimizer = torch.optim.AdamW(model.lclm.parameters(), lr=1e-3)

for step in range(asked.steps):
    while (trace := BUILDERS["expand"](rng, library, maker, mixture)) is None:
        pass  # a draw did not work out
    spans = [torch.tensor(span) for span in trace.spans]
    latents = model.lclm.adapt(model.lclm.encoder(spans, ratio), spans, ratio)
    ids: list[int] = []
    labels: list[int] = []
    sizes = iter(len(one) for one in latents)
    for token, is_scored in zip(trace.ids, trace.is_scored, strict=True):
        count = next(sizes) if token == model.prompts.slot_id else 1
        ids += [token] * count
        labels += [token if is_scored else -100] * count
    embeds = model.lclm.embed(torch.tensor([ids]), torch.cat(latents))
    logits = model.lclm.decoder(inputs_embeds=embeds).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits.float(), torch.tensor(labels[1:]))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.lclm.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step + 1}: loss {loss.item():.4f}")

model.save(asked.out / "model")
