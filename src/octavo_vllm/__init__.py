"""vLLM serves an LCLM whole: encoder, adapter and decoder in one engine (`vllm serve CHECKPOINT`).

Reading order: `config` (what vLLM is told), `renderer` (requests become ids and windows),
`processor` (windows become placeholders), `model` (windows become latents), `usage` (accounts).
Nothing of vLLM is overwritten: all of it is registered (docs/serving.md lists every hook).
"""

ARCHITECTURE = "LCLM"
"""What the root `config.json` of a checkpoint names."""


def register() -> None:
    """Tell vLLM of LCLMs; every process of vLLM calls this, some of them twice."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry
    from vllm.transformers_utils.config import register_config_parser

    from octavo_vllm.config import LCLMDefaults, LCLMParser

    if ARCHITECTURE in MODELS_CONFIG_MAP:
        return
    # By name: a process that needs no model imports none. `octavo.nn` registers the config.
    ModelRegistry.register_model(ARCHITECTURE, "octavo_vllm.model:ServedLCLM")
    register_config_parser("octavo")(LCLMParser)
    TokenizerRegistry.register("octavo", "vllm.tokenizers.hf", "CachedHfTokenizer")
    RENDERER_REGISTRY.register("octavo", "octavo_vllm.renderer", "MemoryRenderer")
    MODELS_CONFIG_MAP[ARCHITECTURE] = LCLMDefaults
