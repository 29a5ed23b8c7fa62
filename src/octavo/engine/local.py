"""Run a model in this process with transformers: batches, KV caches, and reuse of prefixes.

Shapes: B rows, T positions, S slots, D decoder width, V vocabulary, P target tokens.

A prompt is read in two steps: the prefix up to the end of its last context, then the rest. The KV
cache of the prefix is kept, so the next question about the same contexts reads only itself; and
since the first question was read in the same two steps, its answer is the same with and without
reuse. Rows of a batch that share a prefix read it once.

Calls from several threads take turns: every pass through the model holds one lock, which whoever
compresses a long text lets answers have in between.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from octavo.engine.base import Batch, Prompt, Sampling, TargetScores
from octavo.engine.batch import LocalBatch
from octavo.engine.reader import PromptReader
from octavo.errors import ContextError, PromptError
from octavo.nn.body import max_positions
from octavo.weights.layout import Checkpoint

PREFILL_POSITIONS = 8192
"""Positions that the decoder reads at once: its activations then do not grow with the prompt."""
UNLIMITED = 1 << 30
"""Positions of a decoder whose config names no limit, such as a recurrent one."""


class LocalEngine:
    """The engine that everyone has: torch and transformers."""

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, *, prefill: int = PREFILL_POSITIONS
    ) -> None:
        """Move the model to `device` and make it ready to answer."""
        self._checkpoint = checkpoint
        self._lclm = checkpoint.lclm.to(device).eval()
        self._device = device
        self.config, self.extension = self._lclm.settings, self._lclm.extension
        self.name = checkpoint.name
        self.max_positions = max_positions(self._lclm.decoder) or UNLIMITED
        self.latent_width = int(self._lclm.get_input_embeddings().weight.shape[-1])
        self.stop_ids = _stop_ids(checkpoint)
        self._reader = PromptReader(self._lclm, device, prefill)

    @property
    def fingerprint(self) -> str:
        """Identify the weights (see `Checkpoint.fingerprint`)."""
        return self._checkpoint.fingerprint

    @property
    def kept_bytes(self) -> int:
        """The bytes that the KV caches of kept prefixes hold."""
        return self._reader.kept_bytes

    def encode(
        self,
        spans: Sequence[Sequence[int]],
        ratio: int,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """Return the `latents_KD` of each span, on the CPU."""
        ids = [torch.tensor(span, device=self._device) for span in spans]
        passed_at = time.monotonic()

        def note(num_tokens: int) -> None:
            """Report a pass, and let answers that wait go on for as long as it took."""
            nonlocal passed_at
            if on_tokens is not None:
                on_tokens(num_tokens)
            self._reader.lock.stand_back(time.monotonic() - passed_at)
            passed_at = time.monotonic()

        # Not in inference mode: these are ordinary tensors to whoever holds them.
        with self._reader.lock, torch.no_grad():
            pooled = self._lclm.encoder(ids, ratio, note)
            return [one.cpu() for one in self._lclm.adapt(pooled, ids, ratio)]

    def start(self, prompts: Sequence[Prompt], sampling: Sampling) -> Batch:
        """Begin to answer prompts. Raises `ContextError` for latents of another width."""
        self._lclm.refuse_if_closed("answer")
        for prompt in prompts:
            if not prompt.input_ids:
                raise PromptError("a prompt is empty; give it at least one token")
            if prompt.latents is not None and prompt.latents.shape[1] != self.latent_width:
                raise ContextError(
                    f"latents have width {prompt.latents.shape[1]}, but this decoder reads "
                    f"{self.latent_width}; compress with this model"
                )
        return LocalBatch(self._reader, prompts, sampling)

    def score(self, prompt: Prompt, target: Sequence[int]) -> TargetScores:
        """Read the target behind the prompt, in one pass, and return how it is taken."""
        if not target:
            raise PromptError("the target is empty; give it at least one token")
        whole = Prompt(
            input_ids=[*prompt.input_ids, *target],
            latents=prompt.latents,
            # The last token of the prompt is read with the target, which it predicts.
            prefix_length=min(prompt.prefix_length, len(prompt.input_ids) - 1),
        )
        with self._reader.lock, torch.inference_mode():
            key, cache, prefix = self._reader.take(whole)
            try:
                embeds_1TD = self._reader.embed(whole, prefix)
                logits_PV, _ = self._reader.read(embeds_1TD, cache, keep=len(target) + 1)
            finally:
                self._reader.give_back(key, cache, prefix)
            logits_PV = logits_PV[0, :-1].float()
            target_P = torch.tensor(list(target), device=self._device)
            logprobs_PV = logits_PV.log_softmax(-1)
            logprobs_P = logprobs_PV.gather(1, target_P[:, None])[:, 0]
            return TargetScores(
                logprobs=tuple(logprobs_P.tolist()),
                is_greedy=tuple((logits_PV.argmax(-1) == target_P).tolist()),
            )

    def keep_prefixes(self, count: int) -> None:
        """Keep the prefixes of so many contexts from now on, least recently used ones go first."""
        self._reader.max_kept = count

    def forget(self) -> None:
        """Let go of kept prefixes."""
        self._reader.forget()

    def close(self) -> None:
        """Let go of all that is kept; the weights go with the last who holds them."""
        self.forget()


def _stop_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Return every id that ends an answer: the tokenizer's and those of generation_config.json."""
    settings = getattr(checkpoint.lclm.decoder, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    ids = {named} if isinstance(named, int) else set(named or ())
    ids.add(checkpoint.decoder_tokenizer.eos_token_id)
    return tuple(sorted(i for i in ids if i is not None))
