"""What a model is built of: one file a kind, each owning its laws."""
