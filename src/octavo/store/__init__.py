"""A store of contexts on disk: every text is folded once, and found again by name or by content."""

from octavo.store.entry import Entry
from octavo.store.store import Store, octavo_home

__all__ = ["Entry", "Store", "octavo_home"]
