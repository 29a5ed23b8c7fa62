"""Engines whose answers are known beforehand: one that solves, one that hears nothing."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import octavo
from octavo.engine.base import Batch, Prompt, Sampling, TargetScores
from octavo.engine.fake import KnownBatch

Solve = Callable[[str], Sequence[str]]


class Oracle:
    """Solves the text it reads with a plain program; its latents lose nothing.

    A latent is the row of its block's token ids, so that the text behind every slot can be read
    back: a perfect compressor at any ratio. It knows only what stands in its prompt.
    """

    def __init__(self, like: octavo.Model, solve: Solve, max_positions: int = 200_000) -> None:
        self.config, self.extension = like.config, like.extension
        self.name, self.fingerprint = "oracle", "0123456789abcdef"
        self.max_positions, self.latent_width = max_positions, 16
        self.stop_ids = tuple(like.engine.stop_ids)
        self.num_encoded = 0
        self._prompts, self._solve = like.prompts, solve

    def encode(
        self,
        spans: Sequence[Sequence[int]],
        ratio: int,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        self.num_encoded += len(spans)
        return [
            torch.stack(
                [
                    torch.tensor([*block, *[-1.0] * (self.latent_width - len(block))])
                    for block in torch.tensor(list(span)).split(ratio)
                ]
            )
            for span in spans
        ]

    def start(self, prompts: Sequence[Prompt], sampling: Sampling) -> Batch:
        answers = []
        for prompt in prompts:
            ids = self._prompts.text_ids(" " + ", ".join(self._solve(self._text(prompt))))
            answers.append(ids[: sampling.max_new_tokens])
        return KnownBatch(answers)

    def score(self, prompt: Prompt, target: Sequence[int]) -> TargetScores:
        raise NotImplementedError

    def _text(self, prompt: Prompt) -> str:
        latents = iter([] if prompt.latents is None else prompt.latents)
        pieces: list[str] = []
        read = self._prompts.decoder_tokenizer.decode
        for is_slot, run in itertools.groupby(
            prompt.input_ids, lambda token: token == self._prompts.slot_id
        ):
            ids = list(run)
            if is_slot:
                ids = [int(i) for _ in ids for i in next(latents) if i >= 0]
                pieces.append(self._prompts.encoder_tokenizer.decode(ids))
            else:
                pieces.append(read(ids))
        return "".join(pieces)

    @property
    def kept_bytes(self) -> int:
        return 0

    def keep_prefixes(self, count: int) -> None:
        pass

    def forget(self) -> None:
        pass

    def close(self) -> None:
        pass


class Deaf(Oracle):
    """Says the same whatever it reads."""

    def __init__(self, like: octavo.Model) -> None:
        super().__init__(like, lambda text: ["I did not hear the question"])


def oracle(like: octavo.Model, solve: Solve, **settings: int) -> octavo.Model:
    """Return a model that solves what it reads."""
    return octavo.Model(Oracle(like, solve, **settings), like.prompts)


def deaf(like: octavo.Model) -> octavo.Model:
    """Return a model that hears nothing."""
    return octavo.Model(Deaf(like), like.prompts)
