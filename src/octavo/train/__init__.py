"""Train a compressor: recipes, examples, the loop, and the four stages of a run."""
