"""What a finished run came to, and the random halves that a run from scratch begins with."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from octavo.config import read_json
from octavo.errors import TrainingError
from octavo.files import new_folder, write_text
from octavo.recipe import STAGES

SOURCE_TOKENS = 4096
"""The length of the text whose compression is counted in FLOPs."""
_POINTS = 200
"""Of a curve."""


def write_result(out: Path, file: Path) -> None:
    """Write a run's held-out loss, its curve and its costs, from its log and its export.

    The loss is the mean over the kinds of held-out examples at the model's own ratio. Raises
    `TrainingError` for a run that was never measured.
    """
    from octavo.costs import Floor
    from octavo.weights.layout import read

    recipe = read_json(out / "config.json")["recipe"]
    last = [s for s in STAGES if recipe["stages"].get(s, {}).get("steps")][-1]
    if not (out / last / "export").is_dir():
        raise TrainingError(f"the run in {out} was stopped before its end; search again")
    ratio = recipe["model"]["compression_ratio"]
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    measured = [row["measured"] for row in rows if row.get("measured")]
    if not measured:
        raise TrainingError(f"the run in {out} was never measured; set measure_every above 0")
    own = {k.split("/")[0]: v for k, v in measured[-1].items() if k.endswith(f"/{ratio}")}
    steps = [row for row in rows if "loss" in row]
    lclm = read(out / last / "export").lclm
    flops = Floor(lclm).compress_flops(SOURCE_TOKENS, ratio)
    result = {
        "loss": fmean(kind["latents"]["loss"][0] for kind in own.values()),
        "kinds": {
            name: {view: kind[view]["loss"][0] for view in ("latents", "raw", "none")}
            for name, kind in own.items()
        },
        "ratio": ratio,
        "latents": lclm.settings.num_latents(SOURCE_TOKENS, ratio),
        "encoder_gflops": flops / 1e9,
        "steps": len(steps),
        "curve": [round(loss, 6) for loss in _thinned([row["loss"] for row in steps])],
    }
    write_text(file, json.dumps(result, indent=1) + "\n")


def _thinned(losses: list[float]) -> list[float]:
    """Return the means of so many equal parts of a curve."""
    size = max(1, -(-len(losses) // _POINTS))
    return [fmean(losses[at : at + size]) for at in range(0, len(losses), size)]


def write_random_halves(scratch: Mapping[str, Any], folder: Path, seed: int) -> None:
    """Write a language model of random weights and a known architecture, if it is not there.

    `scratch` changes settings of the model called `of`, whose tokenizer it takes.
    """
    if (folder / "config.json").is_file():
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from octavo.weights.assembly import load_base

    settings = dict(scratch)
    name = load_base(settings.pop("of", "octavo:smollm2"))
    config: Any = AutoConfig.from_pretrained(name)
    if unknown := [key for key in settings if not hasattr(config, key)]:
        raise TrainingError(f"scratch.{unknown[0]} is no setting of {name}; drop it")
    given = config.to_dict() | settings
    if "num_hidden_layers" in settings:
        given.pop("layer_types", None)  # one a layer: the class knows its own
    config = type(config)(**given)
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(config)
    with new_folder(folder) as made:
        model.save_pretrained(made)
        AutoTokenizer.from_pretrained(name).save_pretrained(made)
