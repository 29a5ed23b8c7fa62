"""Agents that skim contexts as latents and expand the passages they need."""

from octavo.agent.agent import Agent
from octavo.agent.answer import AgentAnswer, Citation, Round, Tool
from octavo.agent.policies import POLICIES

__all__ = ["POLICIES", "Agent", "AgentAnswer", "Citation", "Round", "Tool"]
