"""Rubrics, criterion-conditioned rewards and a safety veto for medical language models.

Importing the package, its records and its scoring loads no tensor library.
"""

import logging
import warnings

__version__ = "0.1.0"

# On some processors bitsandbytes says, as it is imported, that it found no optional package. PEFT
# and TRL import it, so only a level set before any of them keeps that out of the notebooks.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# without ipywidgets, which the kit does not need, tqdm warns once in every notebook
warnings.filterwarnings("ignore", message="IProgress not found")
