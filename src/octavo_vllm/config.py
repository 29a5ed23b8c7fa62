"""What vLLM is told of a checkpoint: its config, and defaults that would otherwise be flags."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from vllm.config.multimodal import BaseDummyOptions
from vllm.transformers_utils.config_parser_base import ConfigParserBase

from octavo.config import MEMORY_TOKENS, Extension, ModelConfig
from octavo.errors import CheckpointError
from octavo.nn.config import LCLMConfig
from octavo.weights.assembly import UNTRUSTED
from octavo.weights.base import cache_folder
from octavo.weights.guard import check_files
from octavo.weights.layout import (
    GENERATION_FILE,
    PARTS,
    identify,
    open_tokenizer,
    read,
    resolve,
    write,
)
from octavo_vllm import ARCHITECTURE
from octavo_vllm.processor import MODALITY

MAX_WINDOWS = 1_000_000
"""vLLM stops at 999 items of a prompt by default, which are windows here: too few."""


def whole_folder(name: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint whose halves are whole, in the published layout.

    LoRA factors, and halves in one file, are merged into a copy in the user's cache, in bf16, once.
    """
    folder = resolve(name, revision)
    for part in (folder, *(folder / part for part in PARTS)):
        check_files(part)
    if all((folder / half / "config.json").is_file() for half in PARTS[:2]):
        return folder
    merged = cache_folder() / "merged" / identify(folder)
    if not (merged / "config.json").is_file():
        write(read(folder, dtype=torch.bfloat16), merged)
    return merged


def read_config(folder: Path) -> LCLMConfig:
    """Return what a checkpoint's root `config.json` holds, made of the files of its parts."""
    decoder, encoder = (AutoConfig.from_pretrained(folder / p, **UNTRUSTED) for p in PARTS[:2])
    tokenizers = [open_tokenizer(folder / p) for p in PARTS[:2]]
    pad = tokenizers[1].pad_token_id
    extension = Extension.read(folder)
    return LCLMConfig(
        text_config=decoder,
        encoder_config=encoder,
        model_config=ModelConfig.read(folder).to_dict(),
        extension=extension.to_dict(),
        memory_token_ids=tokenizers[0].convert_tokens_to_ids(list(MEMORY_TOKENS)),
        encoder_pad_token_id=(tokenizers[1].eos_token_id if pad is None else pad) or 0,
        architectures=[ARCHITECTURE],
        dtype=decoder.dtype,
        tie_word_embeddings=decoder.tie_word_embeddings,  # vLLM asks the outer config
    )


class LCLMParser(ConfigParserBase):
    """`--config-format octavo`: for a checkpoint without a config.json in its root."""

    def parse(
        self,
        model: str | Path,
        trust_remote_code: bool,
        revision: str | None = None,
        code_revision: str | None = None,
        **options: Any,
    ) -> tuple[dict[str, Any], LCLMConfig]:
        """Return the config as a dictionary and as an object; no code of a checkpoint is run."""
        config = read_config(whole_folder(model, revision))
        config.name_or_path = str(model)
        return config.to_dict(), config


class LCLMDefaults:
    """Fills in what would otherwise be flags of `vllm serve`."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Name tokenizer, renderer and sampling defaults, and refuse to go on without memory."""
        folder = whole_folder(model_config.model, model_config.revision)
        root = folder if (folder / "tokenizer_config.json").is_file() else folder / "decoder"
        if model_config.tokenizer == model_config.model:
            model_config.tokenizer = str(root)
        if model_config.tokenizer_mode == "auto":
            model_config.tokenizer_mode = "octavo"
        if model_config.generation_config == "auto" and not (folder / GENERATION_FILE).is_file():
            model_config.generation_config = str(folder / "decoder")
        limits = model_config.multimodal_config.limit_per_prompt
        limits.setdefault(MODALITY, BaseDummyOptions(count=MAX_WINDOWS))
        if model_config.tokenizer_mode != "octavo" or not model_config.supports_multimodal_inputs:
            raise CheckpointError(  # vLLM would go on, and never read a document
                f"vLLM would serve {model_config.model} without its memory; leave out "
                "--tokenizer-mode, --language-model-only and --limit-mm-per-prompt, and let "
                f"--tokenizer, if it must be given, be {root}"
            )

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Let the latents of one whole prompt stay in the encoder cache; vLLM has no flag for it.

        By default it holds as many as one step reads, and a longer document's windows would be
        encoded again where the prefix cache has lost them.
        """
        scheduler = vllm_config.scheduler_config
        longest = vllm_config.model_config.max_model_len
        scheduler.encoder_cache_size = max(scheduler.encoder_cache_size, longest)
