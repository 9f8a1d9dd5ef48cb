"""The kit's own experiments: plans as YAML beside the code that runs them."""
