"""Reads checkpoints that DeepSpeed, Megatron-Core and torch DCP wrote of our models."""
