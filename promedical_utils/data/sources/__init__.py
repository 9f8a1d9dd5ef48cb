"""Public sets read into the kit's records, each with a card."""
