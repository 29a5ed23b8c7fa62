"""Agents that skim contexts as latents and expand the passages they need."""

from octavo.agent.agent import Agent
from octavo.agent.answer import AgentAnswer, Round, Tool
from octavo.agent.calibrate import KnownItem, calibrate
from octavo.agent.policies import POLICIES
from octavo.ask.citations import Citation

__all__ = [
    "POLICIES",
    "Agent",
    "AgentAnswer",
    "Citation",
    "KnownItem",
    "Round",
    "Tool",
    "calibrate",
]
