"""What the paper shows: its tables and figures, the claims, the trace, the comparison of runs."""
