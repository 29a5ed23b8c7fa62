"""Measure any compressor against raw text and against KV-cache compression, on the same items.

A *task* makes items and scores answers; a *method* reads an item's context in its own way and
answers; `run` writes one row per answer; `report` reads rows only. Tasks and methods never meet.
"""
