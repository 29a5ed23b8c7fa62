"""The routes of OpenAI's API, and those of contexts, each file with what its paths share."""
