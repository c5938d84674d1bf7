"""The one exception class for mistakes that the user can put right."""


class UserError(ValueError):
    """The user's mistake. The message names the value, the rule it breaks and the way out.

    The command line prints the message without a traceback; any other exception is our own bug and keeps its
    traceback.
    """
