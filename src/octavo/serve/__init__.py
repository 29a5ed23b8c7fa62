"""An OpenAI-compatible server over one model: answers, contexts by id, learned compaction, a page.

Needs the extra `octavo[serve]`; nothing else imports this package, and `octavo.cli.serving` says
what to install where it is missing.
"""
