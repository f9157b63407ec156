"""The lifelong benchmark: what is still known after the fast weights are reset, and at what cost."""
