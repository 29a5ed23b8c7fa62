"""The commands of the evaluation: eval, report and bench."""
