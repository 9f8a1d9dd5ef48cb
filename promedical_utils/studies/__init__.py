"""Several trainings compared on one run's data: plans as YAML beside what runs them."""
