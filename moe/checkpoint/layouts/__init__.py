"""Which rank of which layout holds which elements of which logical tensor, as pure maps."""
