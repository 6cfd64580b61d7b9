"""The one exception users see."""


class VisqError(Exception):
    """Something the user can act on. The message is one clear line; the command line prints it without a traceback."""
