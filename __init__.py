"""moelstrom: distributed mixture-of-experts pretraining from one YAML file."""

__version__ = "0.1.0"


class UserError(Exception):
    """A mistake in something the user gave (config, data, checkpoint, cluster).

    The message names the field or file, the value found, and the fix. The command line prints it
    on one line without a traceback and exits with code 2.
    """
