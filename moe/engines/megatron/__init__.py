"""How Megatron-Core lays out its state; it does not train here yet."""
