"""Training data: documents are read, examples built of them, and rows packed.

Read in this order: `documents`, `sources`, `examples` and `builders`, `packing`, `rows`, `prepare`.
"""
