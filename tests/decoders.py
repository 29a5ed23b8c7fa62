"""Tiny random decoders of many architectures, and what holds for each of them, by name.

Shapes: T prompt tokens, S slots, D decoder width, V vocabulary.
"""

import functools
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

import octavo
from octavo.engine.base import Prompt, Sampling
from octavo.errors import OctavoError
from octavo.weights.assembly import add_lora

TEXT = (
    "The lighthouse keeper wrote every evening into a grey ledger: wind, tide, sails in sight. "
    "On Tuesday a schooner passed with two lanterns; on Friday nothing passed, and he drew a fish. "
    "His daughter counted the gulls, 41 of them, and hid the key below the third step. "
)
QUESTIONS = ("Where is the key?", "How many gulls were there, and who counted them on that day?")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NUM_NEW = 6
SIZE = {"hidden_size": 32, "initializer_range": 0.3, "vocab_size": 300, "num_hidden_layers": 4}
IDS = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
PLAIN: dict[str, Any] = {
    **SIZE,
    **IDS,
    "bos_token_id": None,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
SLIDING = {
    "sliding_window": 16,
    "layer_types": [*["sliding_attention"] * 3, "full_attention"],
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2}
LATENT_ATTENTION = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
GATED_DELTA = {
    "head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": [*["linear_attention"] * 3, "full_attention"],
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
PER_LAYER = {
    **SLIDING,
    "head_dim": 16,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 300,
    "num_kv_shared_layers": 0,
}
OLD = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 2048, "vocab_size": 300}
OLD |= {"initializer_range": 0.3, "bos_token_id": 2, "eos_token_id": 2}
HEADS = {**SIZE, **IDS, "num_attention_heads": 4}
OPT = {**HEADS, "word_embed_proj_dim": 32, "ffn_dim": 48, "init_std": 0.3}
OPT |= {"max_position_embeddings": 2048}
STATE = {**SIZE, **IDS, "state_size": 8}
# Name: the type that transformers knows, and its settings; those of `PLAIN` under them if True.
KINDS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "llama, untied": ("llama", True, {"tie_word_embeddings": False}),
    "llama, tied": ("llama", True, {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", True, {}),
    "qwen3": ("qwen3", True, {"head_dim": 16}),
    "mistral": ("mistral", True, {"sliding_window": 16}),
    "gemma": ("gemma", True, {"head_dim": 16}),
    "gemma2": (
        "gemma2",
        True,
        {
            "head_dim": 16,
            "sliding_window": 16,
            "final_logit_softcapping": 30.0,
            "attn_logit_softcapping": 50.0,
            "query_pre_attn_scalar": 16,
        },
    ),
    "gemma3": ("gemma3_text", True, {"head_dim": 16, **SLIDING}),
    "gemma3n": (
        "gemma3n_text",
        True,
        {
            **PER_LAYER,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0] * 4,
            "altup_num_inputs": 2,
        },
    ),
    "gemma4": ("gemma4_text", True, {**PER_LAYER, "global_head_dim": 16}),
    "gpt2": ("gpt2", False, OLD),
    "phi": ("phi", True, {}),
    "phi3": ("phi3", True, {"original_max_position_embeddings": 2048}),
    "olmo2": ("olmo2", True, {}),
    "gpt-neox": ("gpt_neox", True, {}),
    "gpt-neo": (
        "gpt_neo",
        False,
        {
            **SIZE,
            **IDS,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 16,
            "max_position_embeddings": 2048,
        },
    ),
    "gpt-j": ("gptj", False, {**OLD, "rotary_dim": 4}),
    "falcon, rotary": ("falcon", False, HEADS),
    "falcon, alibi": ("falcon", False, {**HEADS, "alibi": True, "multi_query": False}),
    "bloom": ("bloom", False, {**HEADS, "n_layer": 4, "n_head": 4}),
    "mpt": ("mpt", False, {**SIZE, "d_model": 32, "n_layers": 4, "n_heads": 4}),
    "opt": ("opt", False, OPT),
    "opt, projected": ("opt", False, {**OPT, "word_embed_proj_dim": 16}),
    "cohere": ("cohere", True, {"logit_scale": 0.5}),
    "cohere2": ("cohere2", True, {"logit_scale": 0.5, **SLIDING}),
    "granite": (
        "granite",
        True,
        {
            "embedding_multiplier": 6.0,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
        },
    ),
    "granite, hybrid": (
        "granitemoehybrid",
        True,
        {
            **MAMBA,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 48,
            "layer_types": ["mamba", "mamba", "attention", "mamba"],
        },
    ),
    "mixtral": ("mixtral", True, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": ("qwen3_moe", True, {"head_dim": 16, **MOE, "moe_intermediate_size": 16}),
    "olmoe": ("olmoe", True, MOE),
    "deepseek-v3": (
        "deepseek_v3",
        True,
        {
            **LATENT_ATTENTION,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "gpt-oss": (
        "gpt_oss",
        True,
        {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "qwen3-next": (
        "qwen3_next",
        True,
        {
            **GATED_DELTA,
            **MOE,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "qwen3.5": ("qwen3_5_text", True, GATED_DELTA),
    "mamba": ("mamba", False, STATE),
    "mamba2": (
        "mamba2",
        False,
        {**STATE, "num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2, "chunk_size": 16},
    ),
    "falcon-mamba": ("falcon_mamba", False, STATE),
    "jamba": (
        "jamba",
        True,
        {
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "use_mamba_kernels": False,
        },
    ),
    "bamba": ("bamba", True, {**MAMBA, "attn_layer_indices": [2]}),
    "zamba2": (
        "zamba2",
        True,
        {
            "num_key_value_heads": 4,
            "layers_block_type": ["mamba", "mamba", "hybrid", "mamba"],
            "mamba_d_state": 8,
            "mamba_expand": 2,
            "n_mamba_heads": 8,
            "mamba_headdim": 8,
            "mamba_ngroups": 1,
            "num_mem_blocks": 1,
            "chunk_size": 16,
            "use_mamba_kernels": False,
        },
    ),
    "falcon-h1": (
        "falcon_h1",
        True,
        {
            **MAMBA,
            "head_dim": 8,
            "mamba_d_ssm": 64,
            "lm_head_multiplier": 0.5,
            "embedding_multiplier": 3.0,
            "attention_in_multiplier": 1.0,
        },
    ),
    "nemotron-h": (
        "nemotron_h",
        True,
        {
            "layers_block_type": ["mamba", "attention", "mamba", "mlp"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "chunk_size": 16,
            "n_groups": 1,
        },
    ),
    "recurrent-gemma": (
        "recurrent_gemma",
        False,
        {
            **HEADS,
            "lru_width": 32,
            "intermediate_size": 48,
            "num_key_value_heads": 1,
            "attention_window_size": 16,
            "block_types": ["recurrent", "recurrent", "attention"],
        },
    ),
    "rwkv": ("rwkv", False, {**SIZE, **IDS, "attention_hidden_size": 32, "context_length": 2048}),
    "lfm2": (
        "lfm2",
        True,
        {
            "layer_types": ["conv", "conv", "full_attention", "conv"],
            "block_auto_adjust_ff_dim": False,
        },
    ),
    "smollm3": ("smollm3", True, {"no_rope_layers": [1, 1, 1, 0]}),
    "stablelm": ("stablelm", True, {}),
    "starcoder2": ("starcoder2", True, {}),
    "nanochat": ("nanochat", True, {"final_logit_softcapping": 15.0}),
    "minicpm3": ("minicpm3", True, LATENT_ATTENTION),
    "llama4": (
        "llama4_text",
        True,
        {
            "head_dim": 8,
            "num_local_experts": 2,
            "intermediate_size_mlp": 48,
            "attention_chunk_size": 16,
            "no_rope_layers": [1, 1, 1, 0],
        },
    ),
    "glm4": ("glm4", True, {"head_dim": 8}),
    "exaone4": ("exaone4", True, SLIDING),
    "modernbert-decoder": (
        "modernbert-decoder",
        False,
        {
            **HEADS,
            "intermediate_size": 48,
            "local_attention": 16,
            "max_position_embeddings": 2048,
            "cls_token_id": 2,
            "sep_token_id": 2,
        },
    ),
}


def tokenizer(size: int = 300) -> Any:
    """A byte tokenizer with merges, of at most `size` tokens."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=alphabet, special_tokens=special
    )
    raw.train_from_iterator([TEXT * 4], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    made.chat_template = TEMPLATE
    return made


def config(kind: str, **change: Any) -> Any:
    """The config of one kind."""
    name, is_plain, values = KINDS[kind]
    return AutoConfig.for_model(name, **{**(PLAIN if is_plain else {}), **values, **change})


def decoder(kind: str, seed: int = 0, **change: Any) -> Any:
    """A causal LM with random weights."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config(kind, **change)).eval()
    if made.generation_config is not None:
        made.generation_config.eos_token_id = None
    return made


def body(kind: str = "llama, tied", seed: int = 1, **change: Any) -> Any:
    """A headless model with random weights."""
    torch.manual_seed(seed)
    return AutoModel.from_config(config(kind, **change)).eval()


def bidirectional(name: str, **change: Any) -> Any:
    """A headless model that was made to see in both directions."""
    values = {**HEADS, "num_hidden_layers": 2, "intermediate_size": 48, **change}
    values.setdefault("max_position_embeddings", 128)
    values |= {"eurobert": {"num_key_value_heads": 2}}.get(name, {})
    if name == "modernbert":
        values |= {"local_attention": 16, "cls_token_id": 2, "sep_token_id": 2}
    torch.manual_seed(1)
    return AutoModel.from_config(AutoConfig.for_model(name, **values)).eval()


def assemble(given: Any, encoder: Any = None, **settings: Any) -> octavo.Model:
    """A fresh model around a decoder, or a kind of one."""
    made = decoder(given) if isinstance(given, str) else given
    words = tokenizer()
    torch.manual_seed(2)
    return octavo.assemble(
        body() if encoder is None else encoder,
        made,
        encoder_tokenizer=words,
        decoder_tokenizer=words,
        device="cpu",
        **{"compression_ratio": 4, "encoder_window_size": 16, **settings},
    )


# -- what should hold ------------------------------------------------------------------------------


def prompt(model: octavo.Model, question: str, context: Any) -> Prompt:
    """A question about a context, ready to be read."""
    part = [{"type": "memory", "context": context}] if context is not None else []
    content = [*part, {"type": "text", "text": question}]
    encoded = model.prompts.encode_messages([{"role": "user", "content": content}])
    return Prompt(
        input_ids=encoded.input_ids,
        latents=None if context is None else context.latents,
        prefix_length=encoded.prefix_length,
    )


def recomputed(model: octavo.Model, given: Prompt, steps: int = NUM_NEW) -> tuple[list[int], Any]:
    """Greedy tokens and the logits `TV` behind them, with everything read anew at every step."""
    ids, rows = list(given.input_ids), []
    lclm = model.lclm
    with torch.no_grad():
        for _ in range(steps):
            embeds = lclm.embed(torch.tensor([given.input_ids]), given.latents)
            if len(ids) > len(given.input_ids):  # tokens, whatever they are: never slots
                fresh = lclm.embed_tokens(torch.tensor([ids[len(given.input_ids) :]]))
                embeds = torch.cat([embeds, fresh], 1)
            logits = lclm(inputs_embeds=embeds, use_cache=False).logits[0, -1].float()
            rows.append(logits)
            ids.append(int(logits.argmax()))
    return ids[len(given.input_ids) :], torch.stack(rows)


def gap(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, beside the largest value."""
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    return ((got - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item()


def check(got: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    """Two ways to the same numbers."""
    assert gap(got, wanted) < 2e-3, f"{what}: {gap(got, wanted):.3g}"


def answers_are_right(model: octavo.Model, context: Any) -> None:
    """Alone, again, without a context and in a batch, an answer is that of reading all anew."""
    prompts = [
        prompt(model, q, c)
        for q, c in zip((*QUESTIONS, QUESTIONS[0]), (context, context, None), strict=True)
    ]
    wanted = []
    for one in prompts:
        tokens, logits = recomputed(model, one)
        wanted.append(list(zip(tokens, logits.log_softmax(-1).amax(-1).tolist(), strict=True)))
    for given in ([0], [1], [0], [2], [0, 1, 2]):
        sampling = Sampling(max_new_tokens=NUM_NEW, stop_ids=(-7,), logprobs=True)
        batch = model.engine.start([prompts[index] for index in given], sampling)
        rows: list[Any] = [[] for _ in given]
        for tokens in batch:
            for row, token, logprob in zip(rows, tokens, batch.logprobs, strict=True):
                row.append((token, logprob))
        for row, index in zip(rows, given, strict=True):
            assert [t for t, _ in row] == [t for t, _ in wanted[index]], (
                f"prompt {index} of {given}"
            )
            check(
                torch.tensor([p for _, p in row]),
                torch.tensor([p for _, p in wanted[index]]),
                f"prompt {index} of {given}",
            )


def hf_answers_are_right(model: octavo.Model, context: Any, rows: Sequence[int] = (0,)) -> None:
    """`LCLM.generate` gives the logits of reading all anew, also for rows of several lengths."""
    prompts = [prompt(model, QUESTIONS[row], context) for row in rows]
    longest = max(len(one.input_ids) for one in prompts)
    ids = [[0] * (longest - len(one.input_ids)) + list(one.input_ids) for one in prompts]
    mask = [[0] * (longest - len(p.input_ids)) + [1] * len(p.input_ids) for p in prompts]
    made = model.lclm.generate(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        latents=torch.cat([context.latents] * len(rows)),
        **OPTIONS,
        max_new_tokens=NUM_NEW,
        do_sample=False,
    )
    logits = torch.stack(made.logits, 1).float()
    for row, one in enumerate(prompts):
        check(logits[row], recomputed(model, one)[1], f"row {row} of {len(rows)}")


OPTIONS: dict[str, Any] = {
    "return_dict_in_generate": True,
    "output_logits": True,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def beams_are_right(model: octavo.Model, context: Any) -> None:
    """Beams are as likely as the tokens they hold, read anew."""
    given = prompt(model, QUESTIONS[0], context)
    ids = torch.tensor([given.input_ids])
    made = model.lclm.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        latents=given.latents,
        **{**OPTIONS, "output_scores": True},
        num_beams=2,
        length_penalty=0.0,
        max_new_tokens=3,
        do_sample=False,
    )
    tokens = made.sequences[0, -3:].tolist()
    total = 0.0
    with torch.no_grad():
        embeds = model.lclm.embed(ids, given.latents)
        fresh = model.lclm.embed_tokens(torch.tensor([tokens]))
        logits = model.lclm(inputs_embeds=torch.cat([embeds, fresh], 1), use_cache=False).logits
    logprobs = logits[0, -4:-1].float().log_softmax(-1)
    total = sum(logprobs[at, token].item() for at, token in enumerate(tokens))
    check(made.sequences_scores[0], torch.tensor(total), "the best beam")


def training_is_right(model: octavo.Model) -> None:
    """Packed examples score as they do alone, and as the model itself scores them."""
    lclm = model.lclm
    first, second = (torch.tensor(model.prompts.text_ids(t)) for t in (TEXT[:80], TEXT[100:190]))

    def alone(ids: torch.Tensor) -> torch.Tensor:
        logits = lclm(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
        return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")

    with torch.no_grad():
        wanted = torch.cat([alone(first), alone(second)])
        ids = torch.cat([first, second])[None]
        labels = ids.clone()
        labels[0, 0] = labels[0, len(first)] = -100
        places = torch.cat([torch.arange(len(first)), torch.arange(len(second))])[None]
        check(lclm.score(ids, labels, places).loss_P, wanted, "packed")


def latents_are_as_long_as_tokens(model: octavo.Model, context: Any) -> None:
    """A fresh adapter's latents have the length of what the decoder reads."""
    tokens = model.lclm.embed_tokens(torch.tensor(model.prompts.text_ids(TEXT)))
    ratio = (context.latents.norm(dim=-1).mean() / tokens.norm(dim=-1).mean()).item()
    assert 0.5 < ratio < 2, f"latents are {ratio:.2f} times as long as tokens"


def the_decoder_reads_its_own_tokens(model: octavo.Model, own: Any) -> None:
    """What LCLM says without a context is what the decoder says by itself."""
    ids = torch.tensor([model.prompts.text_ids(QUESTIONS[0])])
    with torch.no_grad():
        check(model.lclm(input_ids=ids, use_cache=False).logits[..., : own.shape[-1]], own, "ids")


def survives_the_disk(model: octavo.Model, context: Any) -> None:
    """Saved and loaded, a model makes the same latents and reads them the same."""
    given = prompt(model, QUESTIONS[0], context)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        again = octavo.load(Path(folder) / "model", device="cpu")
        check(again.compress(TEXT[:200]).latents, context.latents, "latents")
        check(recomputed(again, given, 1)[1], recomputed(model, given, 1)[1], "logits")


def lora_survives_the_disk(kind: str) -> None:
    """LoRA factors on a base, saved and loaded, are the same model, memory tokens included."""
    from octavo.weights.layout import read, write

    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        for name, made in (("decoder", decoder(kind)), ("encoder", decoder("llama, tied", 1))):
            made.save_pretrained(folder / name)
            tokenizer().save_pretrained(folder / name)
        places = {name: str(folder / name) for name in ("encoder", "decoder")}
        model = octavo.assemble(**places, compression_ratio=4, encoder_window_size=16, device="cpu")
        add_lora(model.lclm, 4, 8, **places)
        ids = torch.tensor([model.prompts.text_ids(QUESTIONS[0])])
        with torch.no_grad():
            plain = model.lclm(input_ids=ids, use_cache=False).logits
            for name, factor in model.lclm.decoder.named_parameters():
                if "lora_B" in name:
                    factor.normal_(0, 0.3)
            wanted = model.lclm.eval()(input_ids=ids, use_cache=False).logits
            assert gap(wanted, plain) > 1e-3, "the factors change nothing"
            write(model._checkpoint, folder / "out")
            got = read(folder / "out").lclm(input_ids=ids, use_cache=False).logits
        check(got, wanted, "reloaded")


@functools.cache  # asked for a test of its own and for the table
def what_holds(kind: str) -> dict[str, str]:
    """Each promise by name: ok, our own refusal, or what went wrong in capitals."""
    own = decoder(kind)
    found: dict[str, str] = {}
    made: dict[str, Any] = {}

    def step(name: str, act: Callable[[], Any]) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[name] = act()
            found[name] = "ok"
        except OctavoError as error:
            found[name] = str(error)
        except AssertionError as error:
            found[name] = f"WRONG: {error}"
        except Exception as error:
            found[name] = f"RAW: {type(error).__name__}: {str(error)[:200]}"
        return made.get(name)

    ids = torch.tensor([tokenizer()(QUESTIONS[0])["input_ids"]])
    with torch.no_grad():
        logits = own(input_ids=ids, use_cache=False).logits
    if (model := step("assemble", lambda: assemble(own))) is None:
        return found
    context = step("compress", lambda: model.compress(TEXT[:200]))
    step("own tokens", lambda: the_decoder_reads_its_own_tokens(model, logits))
    step("latent scale", lambda: latents_are_as_long_as_tokens(model, context))
    step("answer", lambda: answers_are_right(model, context))
    step("generate", lambda: hf_answers_are_right(model, context))
    step("batch", lambda: hf_answers_are_right(model, context, (0, 1)))
    step("beams", lambda: beams_are_right(model, context))
    step("train", lambda: training_is_right(model))
    step("LoRA", lambda: lora_survives_the_disk(kind))
    step("disk", lambda: survives_the_disk(model, context))
    return found
