"""Our model under DeepSpeed's ZeRO."""
