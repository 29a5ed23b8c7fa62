"""An agent with a tool of the user's beside `expand`: it looks facts up and reads a clock.

python examples/agent_tool.py FILE QUESTION [--model FOLDER] [--policy model]
"""

import argparse
from datetime import date
from pathlib import Path

import octavo


def days_since(year: int) -> str:
    """Say how many days have gone by since the first of January of a year."""
    return f"{(date.today() - date(year, 1, 1)).days} days"


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("file", type=Path)
parser.add_argument("question")
parser.add_argument("--model", help="a checkpoint folder or hub id; by default the shipped model")
parser.add_argument("--policy", help="model, retrieval, likelihood or hybrid")
asked = parser.parse_args()

tool = octavo.Tool(
    name="days_since",
    description="Counts the days since the beginning of a year.",
    run=days_since,
    parameters={
        "type": "object",
        "properties": {"year": {"type": "integer"}},
        "required": ["year"],
    },
)
agent = octavo.Agent(
    octavo.load(asked.model),
    asked.file.read_text(encoding="utf-8"),
    policy=asked.policy,
    tools=[tool],
    fold_after=2,
)
answer = agent.ask(asked.question)
for number, step in enumerate(answer.rounds, 1):
    print(f"{number}. {step.action}: opened {list(step.expanded)}, {step.positions} positions")
for cited in answer.citations[:3]:
    print(f"line {cited.line}: {' '.join(cited.text.split())}")
print(answer.text if answer.is_sure else f"not sure: {answer.text}")
print(f"cost {answer.cost:.0%} of reading everything")
