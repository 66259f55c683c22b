"""`wulewule data check`: every problem of data files, before anything is trained."""


def add_parser(commands):
    """Add the subcommand to the parser of `wulewule data`."""
