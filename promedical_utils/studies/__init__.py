"""What the paper reads of the studies in ``promedical_studies``: plans, result rows, contrasts."""
