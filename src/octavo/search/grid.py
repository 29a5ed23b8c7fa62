"""Read a grid: a recipe, settings for all of its variants, and those in which they differ.

recipe = "tiny"                    # a packaged recipe, or a file from where the grid lies
seeds = [0, 1]
[set]                              # for every variant
"stages.sft.steps" = 40
[axes]                             # every combination is a variant
"model.pooling" = ["mean", "eos"]
training = [{ name = "joint", "stages.adapter.steps" = 0 }, { name = "staged" }]
[[variants]]                       # and these besides
name = "concat"
set = { "model.pooling" = "concat" }
paper = 1.171                      # the loss that the paper found
"""

import itertools
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.errors import TrainingError
from octavo.sections import did_you_mean
from octavo.settings import flatten

_KEYS = ("recipe", "seeds", "set", "axes", "variants", "scratch")
_VARIANT_KEYS = ("name", "set", "paper")


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One point of a grid."""

    name: str
    settings: Mapping[str, Any]
    """By dotted names, as `--set` has them."""
    paper: float | None = None
    """The loss that the paper found for it."""

    def overrides(self, seed: int) -> list[str]:
        """Return what is set over the recipe, `section.field=value` each."""
        return [f"{name}={json.dumps(value)}" for name, value in self.settings.items()] + [
            f"seed={seed}"
        ]

    def slug(self, seed: int) -> str:
        """Return the name of its run with a seed, fit for a folder."""
        return f"{re.sub(r'[^A-Za-z0-9.]+', '-', self.name).strip('-.')}-s{seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """What is searched."""

    recipe: Path
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    scratch: Mapping[str, Any] = field(default_factory=dict)
    """Settings of both halves' architecture, `of` being the model whose it is otherwise; empty: no
    run starts from scratch."""


def read_grid(path: Path, packaged: Mapping[str, Path]) -> Grid:
    """Read a grid, whose recipe is one of the `packaged` or a file beside it.

    Raises `TrainingError` for a file that cannot be read and for names that nobody knows; settings
    that no recipe has fail their own run alone.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TrainingError(
            f"no grid at {path}; give a .toml file, or the name of a packaged grid"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"{path} is not a readable grid: {error}") from error
    _expect_known(path, "the key", values, _KEYS)
    name = values.get("recipe", "")
    recipe = packaged.get(name) or path.parent / name
    if not name or not recipe.is_file():
        raise TrainingError(
            f"{path} has the recipe {name!r}; expected a file, or one of {', '.join(packaged)}"
        )
    shared = flatten(values.get("set", {}))
    variants = [*_product(values.get("axes", {})), *_listed(path, values.get("variants", []))]
    if not variants:
        raise TrainingError(f"{path} has no variants; add [axes] or [[variants]]")
    variants = [
        Variant(name=one.name, settings={**shared, **one.settings}, paper=one.paper)
        for one in variants
    ]
    slugs = [one.slug(0) for one in variants]
    if twice := [one for one in slugs if slugs.count(one) > 1]:
        raise TrainingError(f"{path} has two variants called {twice[0]!r}; rename one")
    seeds = tuple(values.get("seeds", [0]))
    if not seeds or not all(isinstance(seed, int) for seed in seeds):
        raise TrainingError(f"{path} has seeds {seeds}; expected whole numbers")
    scratch = flatten(values.get("scratch", {}))
    return Grid(recipe=recipe, seeds=seeds, variants=tuple(variants), scratch=scratch)


def _product(axes: Mapping[str, list[Any]]) -> list[Variant]:
    """Return a variant for every combination of the axes; a table sets several settings."""
    found = []
    for chosen in itertools.product(*axes.values()) if axes else ():
        names, settings = [], {}
        for axis, value in zip(axes, chosen, strict=True):
            if isinstance(value, Mapping):
                names.append(str(value.get("name", value)))
                settings.update(flatten({k: v for k, v in value.items() if k != "name"}))
            else:
                names.append(f"{axis.rpartition('.')[2]} {value}")
                settings[axis] = value
        found.append(Variant(name=", ".join(names), settings=settings))
    return found


def _listed(path: Path, given: list[Mapping[str, Any]]) -> list[Variant]:
    for one in given:
        _expect_known(path, "a variant with the key", one, _VARIANT_KEYS)
        if not one.get("name"):
            raise TrainingError(f"{path} has a variant without a name; give it one")
    return [
        Variant(name=one["name"], settings=flatten(one.get("set", {})), paper=one.get("paper"))
        for one in given
    ]


def _expect_known(path: Path, what: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise TrainingError(f"{path} has {what} {name!r}{did_you_mean(name, known)}")
