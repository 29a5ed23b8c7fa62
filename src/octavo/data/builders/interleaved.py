"""Documents in which compressed and plain pieces alternate; the plain ones are scored.

The rule is the paper's (arXiv 2606.09659, App. C.4): start with a span, end
plain; half of a document is plain, of one beyond 16,384 tokens 8,192; 1 to 8 pairs by length; the
first span has 30-40% of all tokens in spans, the last plain piece 40-50% of all plain ones, the
others an even share +-20%; no piece is shorter than 128 tokens.
"""

import itertools
import random

from octavo.data.builders.text import log_uniform, stretch
from octavo.data.examples import Example, ExampleMaker, Part
from octavo.data.sources import Library
from octavo.recipe import MixtureSection

LONG = 16_384
MAX_TRAINABLE = 8_192
PAIRS = ((2_048, 1, 1), (4_096, 1, 2), (8_192, 2, 4), (LONG + 1, 4, 6))
"""Documents below so many tokens have so many pairs, at least and at most (App. C.4)."""
PAIRS_OF_LONG = (4, 8)
FIRST_SHARE = (0.3, 0.4)
LAST_SHARE = (0.4, 0.5)
JITTER = 0.2


def build(
    rng: random.Random, library: Library, maker: ExampleMaker, mixture: MixtureSection
) -> Example | None:
    """Cut a stretch from a random place of a document, and compress every other piece of it."""
    document = library.prose(rng)
    wanted, least = log_uniform(rng, mixture.document_tokens), 2 * mixture.min_segment_tokens
    found = stretch(rng, maker.prompts, document.text, wanted, min(wanted, least))
    if found is None or found.num_tokens < 2:
        return None
    pieces = found.cut(plan(rng, found.num_tokens, mixture.min_segment_tokens))
    parts: list[Part] = [("scored" if i % 2 else "span", piece) for i, piece in enumerate(pieces)]
    return maker.from_parts("interleaved", parts, document.origin)


def plan(rng: random.Random, num_tokens: int, min_segment: int) -> list[int]:
    """Return the lengths of the pieces, compressed and plain in turn; they add up to `num_tokens`.

    There are fewer pairs than the rule says where pieces would be shorter than `min_segment`, down
    to a single pair.
    """
    trainable = MAX_TRAINABLE if num_tokens > LONG else num_tokens // 2
    wrapped = num_tokens - trainable
    low, high = next((p[1:] for p in PAIRS if num_tokens < p[0]), PAIRS_OF_LONG)
    for num_pairs in range(rng.randint(low, high), 1, -1):
        first, last = (
            round(rng.uniform(*share) * total)
            for share, total in ((FIRST_SHARE, wrapped), (LAST_SHARE, trainable))
        )
        spans = [first, *_jittered(rng, wrapped - first, num_pairs - 1)]
        plains = [*_jittered(rng, trainable - last, num_pairs - 1), last]
        if min(*spans, *plains) >= min_segment:
            return [n for pair in zip(spans, plains, strict=True) for n in pair]
    return [wrapped, trainable]


def _jittered(rng: random.Random, total: int, count: int) -> list[int]:
    """Divide `total` into `count` shares within `JITTER` of an even one."""
    jitters = [rng.uniform(-JITTER, JITTER) for _ in range(count)]
    mean = sum(jitters) / count  # taken out, so that the shares add up
    widest = max(abs(jitter - mean) for jitter in jitters)
    scale = min(1.0, JITTER / widest) if widest else 1.0
    ends = [0.0]
    for jitter in jitters:
        ends.append(ends[-1] + total / count * (1 + scale * (jitter - mean)))
    rounded = [*map(round, ends[:-1]), total]
    return [b - a for a, b in itertools.pairwise(rounded)]
