"""A store of contexts on disk: every text is folded once, and found again by name or by content."""

from octavo.store.entry import StoreEntry
from octavo.store.store import Store

__all__ = ["Store", "StoreEntry"]
