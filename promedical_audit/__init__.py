"""Do reported numbers add up? Arithmetic on tables alone."""
