"""Check folders of golden values against this package, through its own doors.

Each DIR holds `checkpoint/`, `cases.json`, `README.json` with tolerances, and expected values in
`expected.safetensors` (fp32) and, where present, `expected_bf16.safetensors` and
`expected_fp32_rounded_rotary.safetensors`. Prints the largest error of every quantity and exits 1
when any is beyond its tolerance.
"""

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import octavo
from octavo.engine import Prompt, Sampling

FP32 = {"atol": 1e-4, "rtol": 1e-4}
REL_RMS = {"pooled": 0.02, "latents": 0.024, "inputs_embeds": 0.021, "logits_last4": 0.044}
ROUNDED = "expected_fp32_rounded_rotary.safetensors"
RUNS = (
    # file, dtype, rotary, suffix of its keys, and the tolerance that README.json names
    ("expected.safetensors", "fp32", "exact", "", "fp32"),
    ("expected_bf16.safetensors", "bf16", "bf16", "", "bf16"),
    (ROUNDED, "fp32", "bf16", "__decoder_rotary_rounded", "fp32"),
    (ROUNDED, "fp32", "bf16_encoder", "__decoder_rotary_exact", "fp32"),
)  # fmt: skip


@dataclass
class Errors:
    """What was found for one quantity."""

    largest: float = 0.0
    values: int = 0
    square: float = 0.0
    expected_square: float = 0.0
    beyond: list[str] = field(default_factory=list)

    @property
    def relative_rms(self) -> float:
        """The size of all errors beside the size of all expected values."""
        return (self.square / self.expected_square) ** 0.5 if self.expected_square else 0.0


def check(folder: Path) -> tuple[bool, list[str]]:
    """Return whether a folder passes, and the lines to show."""
    about = json.loads((folder / "README.json").read_text(encoding="utf-8"))
    cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    tolerances = about.get("tolerances", {})
    passed, lines = True, [f"{folder.name}: {about.get('covers', '')}"]
    for name, dtype, rotary, suffix, kind in RUNS:
        if not (folder / name).is_file():
            continue
        expected = load_file(folder / name)
        model = octavo.load(folder / "checkpoint", device="cpu", dtype=dtype, rotary=rotary)
        tolerance = tolerances.get(kind, {})
        found = compare(model, cases, expected, suffix, tolerance, is_exact=kind == "fp32")
        lines.append(f"  {name.removesuffix('.safetensors')} (rotary {rotary})")
        for quantity, errors in found.items():
            if kind == "bf16" and quantity in REL_RMS:
                limit = tolerance.get("rel_rms", REL_RMS)[quantity]
                if errors.relative_rms > limit:
                    errors.beyond.append(f"relative rms {errors.relative_rms:.4f} > {limit}")
                shown = f"largest error {errors.largest:.2e}, rms {errors.relative_rms:.2e}"
                shown += f" (<= {limit})"
            elif quantity in ("ids", "slots", "counts", "greedy"):
                shown = f"{errors.values} compared, {len(errors.beyond)} differ"
            else:
                shown = f"largest error {errors.largest:.2e} over {errors.values} values"
            verdict = "ok" if not errors.beyond else f"FAIL {errors.beyond[0]}"
            lines.append(f"    {quantity:<14} {shown:<52} {verdict}")
            passed = passed and not errors.beyond
    if len(lines) == 1:
        return False, [*lines, "  no expected values found"]
    return passed, lines


def compare(
    model: octavo.Model,
    cases: list[dict[str, Any]],
    expected: dict[str, Tensor],
    suffix: str,
    tolerance: dict[str, Any],
    *,
    is_exact: bool,
) -> dict[str, Errors]:
    """Run every case and collect the errors of each quantity."""
    found: dict[str, Errors] = defaultdict(Errors)
    other = {run[3] for run in RUNS if run[3]} - {suffix}
    unseen = {key for key in expected if not key.endswith(tuple(other) or ("\0",))}
    for case in cases:
        own = run_case(model, case, found)
        for name, value in own.items():
            for key in (f"{case['id']}/{name}", f"{case['id']}/{name}{suffix}"):
                if key in expected:
                    unseen.discard(key)
                    quantity = name.rsplit("/", 1)[-1]
                    _compare_values(found[quantity], key, value, expected[key], tolerance, is_exact)
                    break
        for key in {f"{case['id']}/greedy_ids", f"{case['id']}/greedy_ids{suffix}"} & set(expected):
            unseen -= {key, key.replace("greedy_ids", "greedy_margin")}
            margins = expected[key.replace("greedy_ids", "greedy_margin")]
            needed = 0.0 if is_exact else tolerance.get("greedy_margin_needed", 1.0)
            unsure = (margins < needed).nonzero()
            certain = int(unsure[0]) if len(unsure) else len(margins)
            wanted = expected[key].tolist()[:certain]
            chosen = greedy(model, case, len(expected[key]))[:certain]
            found["greedy"].values += 1
            if chosen != wanted:
                found["greedy"].beyond.append(f"{key}: {chosen} instead of {wanted}")
    if unseen:
        found["coverage"].beyond.append(f"{len(unseen)} expected values unused: {min(unseen)}")
    return dict(found)


def encode(model: octavo.Model, case: dict[str, Any]) -> Any:
    """Encode a case's prompt as its author wrote it: its tags are live."""
    if case["kind"] == "messages":
        return model.prompts.encode_messages(case["prompt"], trusted=True)
    return model.prompts.encode_text(case["prompt"])


def run_case(
    model: octavo.Model, case: dict[str, Any], found: dict[str, Errors]
) -> dict[str, Tensor]:
    """Compare ids, slots and counts, and return this package's values for the case."""
    prompt = encode(model, case)
    counts = [span.num_latents for span in prompt.spans]
    sources = [span.source_ids for span in prompt.spans]
    wanted_sources = [span["encoder_token_ids"] for span in case["spans"]]
    for quantity, own, wanted in (
        ("ids", [prompt.input_ids, *sources], [case["decoder_input_ids"], *wanted_sources]),
        ("slots", [list(slot) for slot in prompt.slots], case["slots"]),
        ("counts", counts, case["latent_counts"]),
    ):
        found[quantity].values += 1
        if own != wanted:
            found[quantity].beyond.append(f"{case['id']}: {own} instead of {wanted}")
    lclm = model.lclm
    with torch.inference_mode():
        pooled = lclm.encoder(sources)
        latents = lclm.adapt(pooled, sources, model.config.compression_ratio)
        joined = torch.cat(latents) if latents else None
        embeds = lclm.embed(torch.tensor([prompt.input_ids]), joined)
        logits = lclm(inputs_embeds=embeds).logits[0]
    values = {"inputs_embeds": embeds[0], "logits_last4": logits[-4:]}
    for index in range(len(sources)):
        values[f"span{index}/pooled"] = pooled[index]
        values[f"span{index}/latents"] = latents[index]
    return values


def greedy(model: octavo.Model, case: dict[str, Any], count: int) -> list[int]:
    """Continue a case greedily through the engine, past any end-of-text token."""
    prompt = encode(model, case)
    spans = [span.source_ids for span in prompt.spans]
    latents = model.engine.encode(spans, model.config.compression_ratio)
    ready = Prompt(
        input_ids=prompt.input_ids,
        latents=torch.cat(latents) if latents else None,
        prefix_length=prompt.prefix_length,
    )
    steps = model.engine.start([ready], Sampling(max_new_tokens=count))
    return [tokens[0] for tokens in steps if tokens[0] is not None]


def _compare_values(
    errors: Errors, key: str, own: Tensor, wanted: Tensor, tolerance: dict[str, Any], is_exact: bool
) -> None:
    if own.shape != wanted.shape:
        errors.beyond.append(f"{key}: shape {tuple(own.shape)} instead of {tuple(wanted.shape)}")
        return
    own, wanted = own.double(), wanted.double()
    difference = (own - wanted).abs()
    errors.largest = max(errors.largest, float(difference.max()) if len(difference) else 0.0)
    errors.values += wanted.numel()
    errors.square += float(difference.square().sum())
    errors.expected_square += float(wanted.square().sum())
    if not bool(torch.isfinite(own).all()):
        errors.beyond.append(f"{key}: not finite")
    if is_exact:
        allowed = (
            tolerance.get("atol", FP32["atol"]) + tolerance.get("rtol", FP32["rtol"]) * wanted.abs()
        )
        if bool((difference > allowed).any()):
            errors.beyond.append(f"{key}: off by {float(difference.max()):.2e}")


def main(arguments: list[str]) -> int:
    """Check every folder that is named, or that lies in a named folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    folders: list[Path] = []
    for folder in parser.parse_args(arguments).folders:
        if (folder / "cases.json").is_file():
            folders.append(folder)
        elif found := sorted(path.parent for path in folder.glob("*/cases.json")):
            folders.extend(found)
        else:
            sys.stderr.write(
                f"error: {folder} holds no cases.json; give a folder of golden values\n"
            )
            return 2
    all_passed = True
    for folder in folders:
        try:
            passed, lines = check(folder)
        except (octavo.OctavoError, OSError, KeyError, ValueError) as error:
            passed, lines = False, [f"{folder.name}: {type(error).__name__}: {error}"]
        sys.stdout.write("\n".join([*lines, "  passed" if passed else "  FAILED"]) + "\n")
        all_passed = all_passed and passed
    return 0 if all_passed else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
