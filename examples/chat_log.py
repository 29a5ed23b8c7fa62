"""Chat over a log that grows: each new line costs its own windows, and a turn reads what is new.

python examples/chat_log.py [--model FOLDER]
"""

import argparse

import octavo

LINES = [
    "08:00 The ferry leaves for the island with three crates aboard.",
    "09:10 A crate of lamp oil is missing; the clerk did not sign for it.",
    "10:35 The crate is found in the cellar of the customs house.",
    "11:20 The ferry comes back empty and waits for the tide.",
]

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", help="a checkpoint folder or hub id; by default the shipped model")
model = octavo.load(parser.parse_args().model)

session = octavo.Session(model, LINES[0] + "\n", ratio=None, max_history=200)
for line in LINES[1:]:
    log = session.append(line + "\n")
    answer = session.ask("What happened last?", max_new_tokens=16)
    usage = answer.usage
    print(f"log: {log.source_tokens} tokens in {len(log)} latents")
    print(f"     {answer.text.strip()!r}")
    print(
        f"     read {usage.prompt_tokens - usage.cached_tokens} of {usage.prompt_tokens} positions"
    )

session.save("session")
resumed = octavo.Session.load(model, "session")
print(f"resumed with {len(resumed.turns)} turns")
