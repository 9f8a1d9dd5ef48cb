"""What is kept of a raw pool of instructions, and why each other row is dropped."""
