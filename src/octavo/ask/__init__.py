"""Find the passages of a text that answer a question, with their exact places."""
