"""Check in about a second that a model does what octavo relies on, for architectures differ.

Shapes: B rows, T positions, S slots, D decoder width, V vocabulary.

transformers has some hundred kinds of decoders and encoders. Most keep packed examples apart, read
embeddings as they read ids, and continue from a cache as if they had read everything anew; some do
not, and none of them says so. So a few dozen tokens are read in two ways each. What nothing can do
without is refused with a `ConfigError`; anything else is a door that is closed (`LCLM.closed`): it
raises its error when it is used, or the slower way round is taken.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from octavo.errors import ConfigError
from octavo.files import write_text
from octavo.nn import LCLM
from octavo.nn.adapter import NO_ADAPTER
from octavo.nn.cache import as_keyword, fresh_cache, has_plain_cache, output_cache, places
from octavo.prompt import PromptEncoder
from octavo.weights.base import cache_folder

SAMPLE = "The keeper wrote: wind, tide, 41 sails in sight. Then he hid the key below a third step."
MAX_ERROR = 1e-3
MAX_ERROR_16_BIT = 0.15
"""The largest mean difference, in standard deviations of what is compared.

Rounding leaves about 1e-6 in fp32 and 0.02 in bf16, a neighbour that is seen 0.05 to 1; measured on
the decoders of docs/decoders.md, whose chunked scans round up to 5e-4.
"""
NUM_STEPS = 5
"""Tokens to generate: a state that drifts is seen in the fourth or fifth (Zamba2)."""
GREEDY = {
    "do_sample": False,
    "repetition_penalty": 1.0,
    "max_new_tokens": NUM_STEPS,
    "eos_token_id": -1,  # never: no answer may end early
    "pad_token_id": 0,
    "return_dict_in_generate": True,
}
OFF = "off by "
CONTINUING = ("generate", "padding", "beams")
"""Doors behind which a decoder reads on from a cache, as `answer` does: drift is theirs too."""
CLOSED = {
    "answer": "cannot continue a prompt from what it keeps of it; answer with another decoder",
    "batching": "cannot answer several prompts side by side; they are answered one by one",
    "generate": "cannot run in transformers' generate(); answer with octavo's Model.generate",
    "padding": "sees the padding of shorter prompts; give generate() prompts one at a time",
    "beams": "mixes up its beams; give generate() num_beams=1",
    "scoring": "does more between layers and logits than octavo knows; train it with the loss of "
    "its forward pass, as Trainer does",
    "packing": "lets packed examples see each other; they are read one by one",
    "encoder packing": "lets windows in one row see each other; each gets a row of its own",
}
"""What is wrong behind each door, and the cure; some doors have a slower way round them."""


def check_once(lclm: LCLM, tokenizers: tuple[Any, Any], fingerprint: str) -> None:
    """Check a checkpoint that was not seen before; what was found is kept in the user's cache."""
    key = [transformers.__version__, str(lclm.dtype), str(lclm.config._attn_implementation)]
    path = cache_folder() / "checked" / f"{'-'.join([fingerprint, *key])}.json"
    closed = None
    with suppress(OSError, ValueError):
        closed = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(closed, dict) and all(isinstance(text, str) for text in closed.values()):
        for door in closed.keys() & CLOSED.keys():
            lclm.close(door, closed[door])
        return
    check(lclm, tokenizers)
    with suppress(OSError, ConfigError):  # a cache that cannot be written is none
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(lclm.config.closed))


@torch.no_grad()
def check(lclm: LCLM, tokenizers: tuple[Any, Any], *, is_fresh: bool = False) -> None:
    """Refuse a model that cannot be right, and close the doors that would lead to wrong numbers.

    `tokenizers` are the decoder's and the encoder's. With `is_fresh`, latents must also be about as
    long as tokens. Costs some twenty passes of a few dozen tokens.
    """
    if any(parameter.is_meta for parameter in lclm.parameters()):
        return  # nothing to run
    prompts = PromptEncoder(*tokenizers, lclm.settings)
    ids, source_ids = prompts.text_ids(SAMPLE), list(prompts.source(SAMPLE).ids)
    _check_ids("decoder", tokenizers[0], ids, lclm)
    _check_ids("encoder", tokenizers[1], source_ids, lclm.encoder.body)
    was_training = lclm.training
    lclm.eval()
    lclm.config.closed.clear()
    try:
        with _silence():
            _check_encoder(lclm, source_ids, ids, is_fresh)
            _Probe(lclm, ids).run()
    finally:
        lclm.train(was_training)


def _check_ids(name: str, tokenizer: Any, ids: list[int], model: Any) -> None:
    """Refuse a tokenizer whose ids are not its own once control tokens are out, or not rows."""
    rows = model.get_input_embeddings().weight.shape[0]
    # Only the end: how a text begins is for prompts to say.
    if ids[-8:] != list(tokenizer(SAMPLE, add_special_tokens=False)["input_ids"])[-8:]:
        problem = f"the {name}'s tokenizer splits plain text otherwise without control tokens"
    elif max(ids) >= rows:
        problem = f"the {name}'s tokenizer has the id {max(ids)}, but its embedding {rows} rows"
    else:
        return
    raise ConfigError(f"{problem}; use the tokenizer that belongs to it")


def _check_encoder(lclm: LCLM, ids: list[int], decoder_ids: list[int], is_fresh: bool) -> None:
    """Refuse an encoder whose windows depend on more than their tokens."""
    encoder = lclm.encoder
    kind = encoder.body.config.model_type
    long, short = ids[: encoder.settings.encoder_window_size][:24], ids[:5]
    try:
        alone = encoder([long])[0]
        beside = encoder([long, short])
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        said = str(error).partition("\n")[0]
        raise ConfigError(
            f"{kind} cannot read windows with the masks they need ({said}); use another encoder, "
            "or a newer transformers"
        ) from error
    if _differ(alone, beside[0]) or _differ(encoder([short])[0], beside[1]):
        raise ConfigError(f"{kind} encodes a window otherwise beside others; use another encoder")
    if encoder.settings.pooling == "mean" and not encoder.settings.boundary_overlap:
        _check_sight(lclm, kind, long, alone)
    rows = encoder([long, short, short], one_pass=True)
    if any(_differ(a, b) for a, b in zip(rows, [alone, beside[1], beside[1]], strict=True)):
        lclm.close("encoder packing", f"{kind} {CLOSED['encoder packing']}")
        rows = encoder([long, short, short], one_pass=True)
        if any(_differ(a, b) for a, b in zip(rows, [alone, beside[1], beside[1]], strict=True)):
            raise ConfigError(f"{kind} encodes otherwise in training; use another encoder")
    if encoder.settings.adapter_type != "mlp":
        _check_adapter(lclm, alone)
    if is_fresh and lclm.residual is None:
        tokens_TD = lclm.embed_tokens(torch.tensor(decoder_ids, device=lclm.device))
        got, wanted = (
            rows.float().norm(dim=-1).mean().item() for rows in (lclm.encode([long])[0], tokens_TD)
        )
        if not wanted / 8 < got < wanted * 8:
            raise ConfigError(
                f"fresh latents are {got:.3g} long and tokens {wanted:.3g}: "
                f"{lclm.config.text_config.model_type} could not read them; use another decoder"
            )


def _check_sight(lclm: LCLM, kind: str, ids: list[int], pooled_KE: Tensor) -> None:
    """Refuse an encoder that sees padding, or more or less of a window than its setting says."""
    encoder = lclm.encoder
    device = encoder.device
    ratio = encoder.settings.compression_ratio
    mask = torch.ones(1, len(ids), dtype=torch.long, device=device)
    is_causal = encoder.settings.encoder_mask_type == "causal"
    if is_causal or encoder.has_own_sight:  # by itself, without a mask of ours
        given = torch.tensor([ids], device=device)
        hidden_1TE = encoder.body(input_ids=given, attention_mask=mask).last_hidden_state
        wanted = torch.stack([block.mean(0) for block in hidden_1TE[0].split(ratio)])
        if _differ(pooled_KE, wanted):
            other = "'bidirectional'" if is_causal else "'causal'"
            raise ConfigError(
                f"{kind} does not read a window by itself as with encoder_mask_type "
                f"{encoder.settings.encoder_mask_type!r}; set encoder_mask_type={other}, or use "
                "another encoder"
            )
    half = len(ids) // 2 // ratio * ratio
    if is_causal and half and _differ(encoder([ids[:half]])[0], pooled_KE[: half // ratio]):
        raise ConfigError(f"{kind} sees in both directions; set encoder_mask_type='bidirectional'")


def _check_adapter(lclm: LCLM, pooled_KE: Tensor) -> None:
    """Refuse attention layers in an adapter that do not run alone, or see in one direction only."""
    host: Any = lclm.encoder.body if lclm.adapter.adapter_type == "attn_mlp" else lclm.get_decoder()
    other_KE = torch.cat([pooled_KE[:-1], -pooled_KE[-1:]])
    try:
        first, other = (lclm.adapter([rows])[0][0] for rows in (pooled_KE, other_KE))
        is_right = len(pooled_KE) == 1 or not torch.equal(first, other)
    except Exception:  # of every kind, by architecture
        is_right = False
    if not is_right:
        raise ConfigError(NO_ADAPTER.format(host.config.model_type))


class _Probe:
    """The checks of a decoder, on a prompt whose first tokens stand in slots."""

    def __init__(self, lclm: LCLM, ids: list[int]) -> None:
        """Make a long and a short prompt out of some ids."""
        self.lclm = lclm
        self.kind = lclm.config.text_config.model_type
        device = lclm.device
        self.ids_1T = torch.tensor([ids[:24]], device=device)
        self.short_1T = self.ids_1T[:, 4:15]
        self.latents_SD = lclm.embed_tokens(self.ids_1T[0, :3])
        self.latents_SD = (self.latents_SD + self.latents_SD.flip(0)) / 2  # no token's own

    def run(self) -> None:
        """Refuse, or close the doors that lead to wrong numbers."""
        if reason := self._reason(self._embeds):
            raise ConfigError(
                f"{self.kind} does not read embeddings as it reads the ids they are of ({reason}), "
                "so it could not read latents; use another decoder"
            )
        if reason := self._reason(self._causal):
            raise ConfigError(
                f"{self.kind} lets tokens see what follows them ({reason}); use another decoder"
            )
        checks = {
            "answer": self._answer,
            "batching": self._batching,
            "generate": lambda: self._generate([self.ids_1T]),
            "padding": lambda: self._generate([self.ids_1T, self.short_1T]),
            "beams": self._beams,
            "scoring": lambda: self._score([self.ids_1T]),
            "packing": lambda: self._score([self.ids_1T, self.short_1T]),
        }
        drift = ""
        for door, act in checks.items():
            reason = self._reason(act) or (drift if door in CONTINUING else "")
            if reason and door not in self.lclm.config.closed:
                self.lclm.close(door, f"{self.kind} {CLOSED[door]} ({reason})")
            if door == "answer" and reason.startswith(OFF):
                drift = reason

    def _reason(self, act: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> str:
        """Return why two ways to the same numbers are not the same; nothing if they are."""
        try:
            return next((said for got, wanted in act() if (said := _differ(got, wanted))), "")
        except Exception as error:  # transformers' own, of every kind, by architecture
            first = (str(error).strip().splitlines() or [""])[0][:160]
            return f"{type(error).__name__}: {first}"

    def _logits(self, embeds_BTD: Tensor, **inputs: Any) -> Tensor:
        """Return the logits `BTV` of reading everything anew."""
        logits_BTV: Tensor = self.lclm.decoder(
            inputs_embeds=embeds_BTD, use_cache=False, **inputs
        ).logits
        return logits_BTV

    def _prompt(self, ids_1T: Tensor) -> Tensor:
        """Return the embeddings `1TD` of some ids whose first stand in slots."""
        embeds_1TD = self.lclm.embed_tokens(ids_1T)
        return torch.cat([self.latents_SD[None].to(embeds_1TD), embeds_1TD[:, 3:]], 1)

    def _embeds(self) -> Iterator[tuple[Tensor, Tensor]]:
        logits_1TV = self.lclm.decoder(input_ids=self.ids_1T, use_cache=False).logits
        yield self._logits(self.lclm.embed_tokens(self.ids_1T)), logits_1TV
        self._logits(self._prompt(self.ids_1T))  # some look ids up that embeddings are of

    def _causal(self) -> Iterator[tuple[Tensor, Tensor]]:
        embeds_1TD = self._prompt(self.ids_1T)
        yield self._logits(embeds_1TD[:, :9]), self._logits(embeds_1TD)[:, :9]

    def _answer(self) -> Iterator[tuple[Tensor, Tensor]]:
        embeds_1TD = self._prompt(self.ids_1T)
        wanted_1TV = self._logits(embeds_1TD)
        keyword, cache = "", fresh_cache(self.lclm.decoder)
        for start, stop in [(0, 19), *((step, step + 1) for step in range(19, 19 + NUM_STEPS))]:
            given = {keyword: cache} if keyword else as_keyword(cache)
            given |= places(self.lclm.decoder, start, stop - start, embeds_1TD.device)
            output = self.lclm.decoder(
                inputs_embeds=embeds_1TD[:, start:stop], use_cache=True, **given
            )
            keyword, cache = output_cache(output)
            yield output.logits, wanted_1TV[:, start:stop]

    def _batching(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Lay two prompts of different lengths side by side, and read on behind both."""
        if not has_plain_cache(self.lclm.decoder):
            return  # the engine reads these one by one anyway
        prompts = [self._prompt(ids_1T) for ids_1T in (self.ids_1T, self.short_1T)]
        wanted = [self._logits(embeds_1TD)[0, -2:] for embeds_1TD in prompts]
        longest = prompts[0].shape[1]
        missing = [longest - one.shape[1] for one in prompts]
        embeds_BTD = torch.cat(
            [pad(p, (0, 0, n, 0)) for p, n in zip(prompts, missing, strict=True)]
        )
        mask_BT = torch.ones(2, longest, dtype=torch.long, device=embeds_BTD.device)
        mask_BT[1, : missing[1]] = 0
        cache, places_BT = transformers.DynamicCache(), (mask_BT.cumsum(1) - 1).clamp(min=0)
        for start, stop in ((0, longest - 1), (longest - 1, longest)):
            logits_BTV = self.lclm.decoder(
                inputs_embeds=embeds_BTD[:, start:stop],
                attention_mask=mask_BT[:, :stop],
                position_ids=places_BT[:, start:stop],
                use_cache=True,
                **as_keyword(cache),
            ).logits
            yield logits_BTV[:, -1], torch.stack([w[-2 if start == 0 else -1] for w in wanted])

    def _generate(self, prompts: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Compare each step of `generate` with reading everything anew."""
        made, _ = self._generated(prompts, output_logits=True)
        for row, ids_1T in enumerate(prompts):
            fresh = self.lclm.embed_tokens(made.sequences[row : row + 1, -NUM_STEPS:-1])
            wanted_1TV = self._logits(torch.cat([self._prompt(ids_1T), fresh], 1))
            yield torch.stack([step[row] for step in made.logits]), wanted_1TV[0, -NUM_STEPS:]

    def _generated(self, prompts: list[Tensor], **options: Any) -> Any:
        """Return what `generate` makes of prompts that are filled up on the left."""
        longest = max(ids_1T.shape[1] for ids_1T in prompts)
        slots = torch.full_like(self.ids_1T[:, :3], self.lclm.memory_token_id)
        ids, masks = [], []
        for ids_1T in prompts:
            missing = longest - ids_1T.shape[1]
            shown = torch.cat([slots, ids_1T[:, 3:]], 1)
            ids.append(pad(shown, (missing, 0)))
            masks.append(pad(torch.ones_like(shown), (missing, 0)))
        made = self.lclm.generate(
            input_ids=torch.cat(ids),
            attention_mask=torch.cat(masks),
            latents=torch.cat([self.latents_SD] * len(prompts)),
            **GREEDY,
            **options,
        )
        return made, longest

    def _beams(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Compare the score of the best beam with that of its tokens, read anew."""
        made, length = self._generated(
            [self.ids_1T], num_beams=2, length_penalty=0.0, output_scores=True
        )
        tokens = made.sequences[:1, length:]
        embeds_1TD = torch.cat([self._prompt(self.ids_1T), self.lclm.embed_tokens(tokens)], 1)
        logprobs_TV = self._logits(embeds_1TD)[0, length - 1 : -1].float().log_softmax(-1)
        total = logprobs_TV.gather(1, tokens[0][:, None]).sum()
        yield total[None], made.sequences_scores[:1].float()

    def _score(self, examples: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Compare the losses of packed examples with those of each one's own logits."""
        wanted = []
        for ids_1T in examples:
            logits_1TV = self._logits(self.lclm.embed_tokens(ids_1T)).float()
            wanted.append(cross_entropy(logits_1TV[0, :-1], ids_1T[0, 1:], reduction="none"))
        ids_1T = torch.cat(examples, 1)
        places = [torch.arange(one.shape[1], device=ids_1T.device) for one in examples]
        places_1T = torch.cat(places)[None]
        labels_1T = ids_1T.masked_fill(places_1T == 0, -100)
        yield self.lclm.score(ids_1T, labels_1T, places_1T).loss_P, torch.cat(wanted)


def _differ(got: Tensor, wanted: Tensor) -> str:
    """Return by how much two results differ, if it is more than rounding."""
    if got.shape != wanted.shape:
        return f"shape {tuple(got.shape)}, not {tuple(wanted.shape)}"
    limit = MAX_ERROR_16_BIT if wanted.dtype.itemsize < 4 else MAX_ERROR
    got, wanted = got.float(), wanted.float()
    spread = wanted.std() if wanted.numel() > 1 else wanted.abs().mean()
    error = ((got - wanted).abs().mean() / spread.clamp(min=1e-6)).item()
    return "" if error <= limit else f"{OFF}{error:.2g} standard deviations"


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what transformers says about unusual inputs from those who did not make them."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
