"""Rubrics, criterion-conditioned rewards and a safety veto for medical language models.

Importing the package, its records and its scoring loads no tensor library.
"""

import warnings

__version__ = "0.1.0"

# without ipywidgets, which the kit does not need, tqdm warns once in every notebook
warnings.filterwarnings("ignore", message="IProgress not found")
