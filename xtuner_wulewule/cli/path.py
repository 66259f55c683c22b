"""`wulewule path`: where a packaged config lies."""

from xtuner_wulewule import paths
from xtuner_wulewule.errors import SettingsError


def add_parser(commands):
    """Add the subcommand to the parser of `wulewule`."""
    parser = commands.add_parser(
        "path",
        help="print the path of a packaged config",
        description='Print the path of a packaged config, for example for: xtuner train "$(wulewule path wulewule_sft_1_8b)"',
    )
    parser.add_argument("name", help="name of the config, as in: xtuner list-cfg -p wulewule")
    parser.set_defaults(run=run)


def run(args):
    """Print the path; return exit status 0."""
    known = paths.config_paths()
    if args.name not in known:
        raise SettingsError(f"there is no config {args.name!r}; the packaged ones are {', '.join(known)}")
    print(known[args.name])
    return 0
