"""What each notebook does with a run's files, one module a notebook."""
