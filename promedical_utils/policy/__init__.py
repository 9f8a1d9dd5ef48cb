"""The policy: gated reward, generation, training, one shared base, the test for reward hacking."""
