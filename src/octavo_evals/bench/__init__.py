"""Time compression and raw prefill with random weights: `octavo bench`.

Read in this order: `shapes` (what is built), `floor` (what it must cost), `measure` (one
measurement, by the engine), `run` (all of them, in turn), `summary` (medians and speed-ups).
"""

from octavo_evals.bench.run import Settings, run

__all__ = ["Settings", "run"]
