"""Data parallel with a ZeRO-1 sharded optimizer, expert parallel."""
