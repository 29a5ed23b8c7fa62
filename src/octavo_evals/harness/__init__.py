"""Bridges to other harnesses: lm_eval, and the presses of kvpress."""
