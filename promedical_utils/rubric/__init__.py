"""The rubric: its sums and order, verdicts joined to preferences, criterion pairs."""
