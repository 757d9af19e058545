"""The canonical state that engines and checkpoints share: logical tensors in pieces."""
