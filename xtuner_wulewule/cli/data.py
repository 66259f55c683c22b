"""`wulewule data`: what concerns data files; each subcommand lives in a module of its own."""


def add_parser(commands):
    """Add the subcommand group to the parser of `wulewule`."""
    from xtuner_wulewule.cli import data_prepare

    parser = commands.add_parser("data", help="make and convert data files", description="Make and convert data files.")
    subcommands = parser.add_subparsers(metavar="COMMAND", required=True)
    modules = (data_prepare,)
    for module in modules:
        module.add_parser(subcommands)
