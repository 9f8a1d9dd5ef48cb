"""Rubrics, criterion-conditioned rewards and a safety veto for medical language models.

Importing the package, its records and its scoring loads no tensor library.
"""

__version__ = "0.1.0"
