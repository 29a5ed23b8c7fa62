"""What an LCLM is built from, in the shape that transformers saves and reads."""

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from octavo.errors import ConfigError


class LCLMConfig(PretrainedConfig):  # type: ignore[misc]
    """What `LCLM` is built from: two Hugging Face configs and the published settings."""

    model_type = "lclm"
    sub_configs = {"text_config": AutoConfig, "encoder_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        text_config: Any = None,
        encoder_config: Any = None,
        model_config: dict[str, Any] | None = None,
        extension: dict[str, Any] | None = None,
        memory_token_ids: Sequence[int] = (-1, -1, -1),
        encoder_pad_token_id: int = 0,
        closed: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take the decoder's config as `text_config`, as transformers names it everywhere.

        `memory_token_ids` are those of start, end and slot, in this order. `closed` names what the
        architecture was seen to do wrong (`weights/selfcheck.py`), each with its error message.
        """
        self.text_config = _as_config(text_config)
        self.encoder_config = _as_config(encoder_config)
        self.model_config = dict(model_config or {})
        self.extension = dict(extension or {})
        self.memory_token_ids = list(memory_token_ids)
        self.encoder_pad_token_id = encoder_pad_token_id
        self.closed = dict(closed or {})
        kwargs.setdefault("tie_word_embeddings", False)  # the decoder ties its own
        super().__init__(**kwargs)


def _as_config(value: Any) -> Any:
    """Accept a Hugging Face config or the dictionary it was saved as."""
    if isinstance(value, dict):
        values = dict(value)
        if (kind := values.pop("model_type", None)) is None:
            raise ConfigError("a nested config lacks model_type; save it with transformers")
        return AutoConfig.for_model(kind, **values)
    return value
