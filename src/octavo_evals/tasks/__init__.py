"""One module per benchmark; each has a table `TASKS` of short names and what makes their tasks."""
