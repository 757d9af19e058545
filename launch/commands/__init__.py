"""The subcommands of `moelstrom`, one file each."""
