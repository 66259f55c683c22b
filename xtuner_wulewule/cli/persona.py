"""Who the assistant is said to be: the options of several subcommands, and where it is found without them."""

import sys
from pathlib import Path

from xtuner_wulewule import prompts

GIVE_NAMES = "give --name and --author"  # of rows whose system prompt does not tell them


def add_persona_arguments(parser, otherwise):
    """Add the arguments that say who the assistant is; `otherwise` (str) says where it is found without them."""
    variables = prompts.VARIABLES
    group = parser.add_argument_group("persona", f"who the assistant is; without an option {otherwise}, else that of the package")
    group.add_argument(
        "--name", metavar="NAME", help=f"its name, or several with commas between: Chinese first, English last ({variables['name']})"
    )
    group.add_argument("--author", metavar="AUTHOR", help=f"who made it ({variables['author']})")
    group.add_argument(
        "--system",
        metavar="TEXT",
        help=f"the system prompt, '' for none ({variables['system']}; with another name or author that of the package with them in it)",
    )


def show_notes(notes):
    """Print what `persona_of_data` says that the user should know (list[str]), where it is no part of the output."""
    for note in notes:
        print(note, file=sys.stderr)


def _given(args):
    return prompts.given(name=args.name, author=args.author, system=args.system)


def persona_of_model(args, model, trained=None, files=()):
    """Return the `Persona` of a model: that of the arguments and the environment, else of its training, else of its data.

    Args:
        args (argparse.Namespace): of `add_persona_arguments`.
        model (str | pathlib.Path): its folder, or that of its adapter; where `wulewule run` made it, the run knows the persona.
        trained (Persona, optional): that of its config.
        files (list[str]): its data files, as for `persona_of_data`. Defaults to none.
    """
    from xtuner_wulewule.recipe.state import kept_persona

    if trained is None:
        trained, _ = kept_persona(Path(model).expanduser().resolve().parent.parent)
    if trained is not None:
        return prompts.persona_of(_given(args), trained)
    persona, _, notes = persona_of_data(args, files)
    show_notes(notes)
    return persona


def described(persona):
    """Return a line (str) that says who a `Persona` is."""
    return f"persona: {','.join(persona.names)}, made by {persona.author}"


def persona_of_data(args, files, kept=None):
    """Find the persona of data: that of the arguments and the environment, else as the system prompt of its rows tells.

    Args:
        args (argparse.Namespace): of `add_persona_arguments`.
        files (list[str]): the data files; one that is missing tells nothing.
        kept (dict[str, str], optional): what was given to an earlier run in the folder.

    Returns:
        tuple[Persona, dict[str, str], list[str]]: the persona, what of it was given, and what the user should know.

    Raises:
        SettingsError: a name or an author is empty.
    """
    from xtuner_wulewule.dataset.persona import persona_of_rows, short

    told_now = _given(args)
    given = {**(kept or {}), **told_now}
    # what the user has before his eyes; that of the environment is said, be it what the rows tell
    shown_anyway = {key: value for key, value in given.items() if key not in told_now or getattr(args, key) is not None}
    earlier = [
        f"as an earlier run in the folder was told: --{key}={value}; give it anew to change it"
        for key, value in given.items()
        if key not in told_now
    ]
    persona, system = persona_of_rows(files, given)
    if system is None:
        return persona, given, earlier
    names, shown = ",".join(persona.names), short(system)
    if persona.system != system:
        remedy = "give its --name and --author, or --system, or make the rows anew"
        note = f"warning: most rows about the assistant have another system prompt: {shown}; {remedy}"
    elif prompts.told_by(system) is None and "name" not in given:
        note = f"the rows have a system prompt of their own: {shown}; {GIVE_NAMES}, else {names} is looked for"
    elif persona != prompts.persona_of(shown_anyway):
        note = f"{described(persona)}; its system prompt is that of the rows: {shown}"
    else:
        return persona, given, earlier
    return persona, given, [*earlier, note]
