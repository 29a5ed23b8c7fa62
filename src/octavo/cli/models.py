"""`octavo info`, `pull` and `export`: what is here, fetching what is not, and handing it on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.cli.inputs import check_name, echo, format_bytes
from octavo.cli.options import (
    SHIPPED,
    AsJson,
    Base,
    ModelChoice,
    Revision,
    bars,
    check_revision,
    chooses_model,
    hush_bars,
    open_model,
)
from octavo.config import Extension, ModelConfig, read_json
from octavo.errors import CheckpointError
from octavo.progress import Progress

_PARTS = ("decoder", "encoder", "adapter")


def info(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|CONTEXT",
            help="A model or a saved context; by default the shipped model.",
        ),
    ] = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Show a model or a context; loads and fetches nothing."""
    path = Path(what).expanduser() if what is not None else None
    is_context = path is not None and not path.is_dir()
    if path is not None and is_context and (path.suffix == ".safetensors" or path.is_file()):
        check_name(path)
        rows = _describe_context(path)
    else:
        check_revision(what, revision)
        rows = _describe_model(_local_folder(what, revision))
    if as_json:
        echo(json.dumps(rows))
        return
    for name, value in rows.items():
        if value is not None:
            echo(f"{name.replace('_', ' '):<16} {_show(name, value)}")


def pull(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A hub id, a shipped name or a folder; by default the shipped model.",
        ),
    ] = None,
    revision: Revision = None,
    base: Base = None,
) -> None:
    """Fetch all that a model needs.

    Later commands then work without a network.
    """
    check_revision(model, revision)
    with bars() as report:
        report("looking", 0, 0)
        from octavo.weights.layout import resolve

        hush_bars()
        folder = resolve(model, revision)
        ModelConfig.read(folder)
        lines = [f"model {folder}"]
        for name in _bases(folder):
            was_here = _is_in_cache(name)
            place = _fetch_base(name, base, report)
            lines.append(f"base {name} {'was already at' if was_here else 'is now at'} {place}")
    for line in lines:
        echo(line)


@chooses_model
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where it goes.")],
    choice: ModelChoice = SHIPPED,
) -> None:
    """Write a model whole, in one folder, as `vllm serve FOLDER` and others open it.

    Low-rank factors are merged into what they stand on. Written in bfloat16 unless --dtype says
    otherwise; a checkpoint that lies there is replaced, anything else is left alone.
    """
    place = folder.expanduser()
    with bars() as report:
        chosen = replace(choice, dtype=choice.dtype or "bfloat16", device=choice.device or "cpu")
        model = open_model(chosen, report)
        report("writing", 0, 0)
        model.save(place)
    size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    echo(f"{place}  {model.name}, {chosen.dtype}, {format_bytes(size)}")


def _describe_model(folder: Path) -> dict[str, Any]:
    from octavo.weights.layout import identify

    config, extension = ModelConfig.read(folder), Extension.read(folder)
    bases = _bases(folder)
    return {
        "kind": "model",
        "name": extension.name or folder.resolve().name,
        "folder": str(folder),
        "ratios": sorted({config.compression_ratio, *extension.ratios}),
        "default_ratio": config.compression_ratio,
        "window": config.encoder_window_size,
        "overlap": config.boundary_overlap,
        "pooling": config.pooling,
        "mask": config.encoder_mask_type,
        "adapter": config.adapter_type,
        "residual": extension.residual,
        "fingerprint": identify(folder),
        "bytes": {part: _size_of(folder / part) for part in _PARTS},
        "limits": "; ".join(f"{r}x {words}" for r, words in extension.limits.items()) or None,
        "base": ", ".join(bases) or None,
        "base_is_cached": all(map(_is_in_cache, bases)) if bases else None,
    }


def _describe_context(path: Path) -> dict[str, Any]:
    from octavo.context import CompressedContext

    context = CompressedContext.load(path)
    return {
        "kind": "context",
        "path": str(path),
        "source_tokens": context.source_tokens,
        "latents": context.num_latents,
        "ratio": context.ratio,
        "width": context.latents.shape[1],
        "dtype": str(context.latents.dtype).removeprefix("torch."),
        "bytes": path.stat().st_size,
        "made_by": context.compressor_name,
        "fingerprint": context.fingerprint,
        "has_text": context.text is not None,
        "text_sha256": context.text_sha256,
    }


def _show(name: str, value: Any) -> str:
    """Return a value for people."""
    if isinstance(value, dict):
        return ", ".join(f"{part} {format_bytes(size)}" for part, size in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "bytes":
        return format_bytes(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _local_folder(name: str | None, revision: str | None) -> Path:
    """Find a model as `resolve` does, but look for hub ids in the hub's cache only."""
    from octavo.weights.layout import resolve

    if not name:
        return resolve(None)
    is_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if not is_hub_id or Path(name).expanduser().is_dir():
        try:
            return resolve(name)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; or a context that `octavo compress` wrote") from error
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception as error:  # the hub client raises many kinds; all mean "not here"
        raise CheckpointError(
            f"{name!r} is neither here nor in the hub's cache; fetch it with `octavo pull {name}`"
        ) from error


def _bases(folder: Path) -> list[str]:
    """Return the base models that a checkpoint builds on, if any."""
    names = [Extension.read(folder).base]
    for part in _PARTS:
        settings = folder / part / "adapter_config.json"
        if settings.is_file():
            names.append(read_json(settings).get("base_model_name_or_path"))
    return list(dict.fromkeys(name for name in names if name))


def _is_in_cache(base: str) -> bool:
    """Whether a base model needs no network."""
    if base.startswith("octavo:"):
        from octavo.weights.base import base_folder

        return (base_folder() / "model.safetensors").is_file()
    if Path(base).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(base, "config.json"), str)


def _fetch_base(name: str, source: Path | None, report: Progress) -> Path:
    from octavo.weights.assembly import load_base
    from octavo.weights.layout import resolve

    return resolve(load_base(name, source, report))


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
