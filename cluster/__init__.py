"""Runs an opaque worker program, one process per rank, under Ray, and restarts it on faults."""
