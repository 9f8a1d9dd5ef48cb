"""How good scorers and policies are: the bench, scorers, policy metrics, external sets."""
