"""`wulewule data`: what is done with data files before a training; each subcommand lives in a module of its own."""


def add_parser(commands):
    """Add the group to the parser of `wulewule`."""
    parser = commands.add_parser(
        "data",
        help="check, measure, show, make and convert data files",
        description="Check, measure, show, make and convert data files, before a training.",
    )
    subcommands = parser.add_subparsers(metavar="COMMAND", required=True)
    from xtuner_wulewule.cli import data_check, data_prepare, data_preview, data_stats

    for module in (data_check, data_stats, data_preview, data_prepare):
        module.add_parser(subcommands)
