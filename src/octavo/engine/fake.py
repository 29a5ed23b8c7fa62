"""A deterministic engine without weights, for tests, docs and work on what lies above engines.

Its latents are a fixed function of each block's token ids, and its answers repeat words of the
prompt in an order that depends on the prompt and its latents. It obeys the same contract as the
real ones.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.config import Extension, ModelConfig
from octavo.engine.base import Batch, Prompt, Sampling, TargetScores
from octavo.errors import PromptError

LATENT_WIDTH = 16
Answer = Callable[[Prompt, Sampling, int | None], Sequence[int]]
"""Makes the answer to a prompt, with the seed of its row."""


class KnownBatch:
    """A batch whose answers are known beforehand, one list of tokens a row."""

    def __init__(self, answers: Sequence[Sequence[int]], answer: Answer | None = None) -> None:
        """Give the answers out token by token; `answer` makes those of rows that join later."""
        self._answers = [list(answer) for answer in answers]
        self._answer = answer
        self._step = 0
        self._free: set[int] = set()
        self.logprobs: list[float | None] = [None] * len(answers)
        self.alternatives: list[list[tuple[int, float]]] = [[] for _ in answers]
        self.reused = [0] * len(answers)
        self.num_reused = 0

    def join(self, prompt: Prompt, sampling: Sampling) -> int:
        """Add a row."""
        assert self._answer is not None, "this batch does not know how to answer more"
        made = list(self._answer(prompt, sampling, sampling.seed_of(0)))
        if self._free:
            row = self._free.pop()
            self._answers[row] = made
            return row
        self._answers.append(made)
        self.reused.append(0)
        return len(self._answers) - 1

    def __iter__(self) -> Iterator[list[int | None]]:
        """Return itself."""
        return self

    def __next__(self) -> list[int | None]:
        """Give out the next token of every row that has one."""
        self._step += 1
        tokens = [answer.pop(0) if answer else None for answer in self._answers]
        self._free = {row for row, token in enumerate(tokens) if token is None}
        if all(token is None for token in tokens):
            raise StopIteration
        self.logprobs = [None if token is None else 0.0 for token in tokens]
        self.alternatives = [[] if token is None else [(token, 0.0)] for token in tokens]
        return tokens

    def drop(self, row: int) -> None:
        """End a row."""
        self._answers[row] = []
        self._free.add(row)

    def close(self) -> None:
        """End all rows."""
        self._answers = [[] for _ in self._answers]


class FakeEngine:
    """An engine that costs nothing."""

    def __init__(
        self,
        config: ModelConfig,
        extension: Extension,
        name: str,
        *,
        stop_ids: tuple[int, ...],
        control_ids: frozenset[int],
        max_positions: int = 8192,
    ) -> None:
        """Imitate a model with the given settings; `control_ids` never appear in answers."""
        self.config, self.extension, self.name = config, extension, f"fake:{name}"
        self.max_positions, self.latent_width = max_positions, LATENT_WIDTH
        self.stop_ids, self._control_ids = stop_ids, control_ids

    @property
    def fingerprint(self) -> str:
        """Identify the settings; there are no weights."""
        return hashlib.sha256(repr((self.name, self.config)).encode()).hexdigest()[:16]

    def encode(
        self,
        spans: Sequence[Sequence[int]],
        ratio: int,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """Return one latent per block, a smooth function of its token ids."""
        channels = torch.arange(1, LATENT_WIDTH + 1)
        latents = []
        for span in spans:
            blocks = torch.tensor(list(span)).split(ratio)
            rows = [torch.sin(0.1 * channels * (block + 1)[:, None]).mean(0) for block in blocks]
            latents.append(torch.stack(rows))
            if on_tokens is not None:
                on_tokens(len(span))
        return latents

    def start(self, prompts: Sequence[Prompt], sampling: Sampling) -> Batch:
        """Answer with words of each prompt, eight to fifteen of them."""
        answers = [
            self._answer(prompt, sampling, sampling.seed_of(row))
            for row, prompt in enumerate(prompts)
        ]
        return KnownBatch(answers, self._answer)

    def score(self, prompt: Prompt, target: Sequence[int]) -> TargetScores:
        """Find tokens likely that stand in the prompt, and the first of them likeliest."""
        if not target:
            raise PromptError("the target is empty; give it at least one token")
        words = self._words(prompt)
        return TargetScores(
            logprobs=tuple(-1.0 if token in words else -9.0 for token in target),
            is_greedy=tuple(token == words[0] for token in target),
        )

    @property
    def kept_bytes(self) -> int:
        """Nothing is kept."""
        return 0

    def keep_prefixes(self, count: int) -> None:
        """Nothing is kept."""

    def forget(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is held."""

    def _words(self, prompt: Prompt) -> list[int]:
        return [i for i in prompt.input_ids if i not in self._control_ids] or [0]

    def _answer(self, prompt: Prompt, sampling: Sampling, own_seed: int | None) -> list[int]:
        state = repr(list(prompt.input_ids)).encode()
        if prompt.latents is not None:
            rounded = (prompt.latents.float() * 1000).round().to(torch.int64)
            state += repr(rounded.tolist()).encode()
        seed = int.from_bytes(hashlib.sha256(state).digest()[:8], "big")
        if sampling.temperature > 0:
            seed = hash((seed, own_seed if own_seed is not None else random.random()))
        rng = random.Random(seed)
        words = self._words(prompt)
        length = min(sampling.max_new_tokens, rng.randint(8, 15))
        return [rng.choice(words) for _ in range(length)]


class ScriptedEngine(FakeEngine):
    """A fake that says what it is told, turn by turn: a strong model, for tests of agents."""

    def __init__(self, *args: Any, script: Iterable[Sequence[int]], **settings: Any) -> None:
        """Imitate a model; `script` holds the tokens of each answer, and then there are none."""
        super().__init__(*args, **settings)
        self._script = iter(script)
        self.asked: list[Prompt] = []
        """Every prompt that was answered."""

    def start(self, prompts: Sequence[Prompt], sampling: Sampling) -> Batch:
        """Say the next lines of the script."""
        self.asked += prompts
        return KnownBatch(
            [list(next(self._script, ()))[: sampling.max_new_tokens] for _ in prompts]
        )
