"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: a configuration key, a file, an argument.

    The message is one line that names the key or file, its value and what is allowed. The command line prints it
    without a traceback and exits with status 2; anything else that escapes is a defect of ours and keeps its
    traceback.
    """
