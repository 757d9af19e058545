"""Kinds of cluster, each a folder that nothing outside it imports: see `kinds`."""
