"""What the studies in ``promedical_studies`` share: plan, result rows, contrasts."""
