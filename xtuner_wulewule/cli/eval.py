"""`wulewule eval`: a scorecard of what a model has learned, and a gate."""

import os
from pathlib import Path

from xtuner_wulewule import paths
from xtuner_wulewule.cli.persona import add_persona_arguments, described, persona_of_model
from xtuner_wulewule.errors import SettingsError
from xtuner_wulewule.prompts import persona_of_config

HELD_OUT = 0.05  # of the packaged tuning configs


def add_gate_argument(parser, what):
    """Add `--gate`."""
    parser.add_argument(
        "--gate",
        nargs="?",
        const="",
        metavar="RULES",
        help=f"{what} unless it passes, for example name>=0.95,leak<=0.05 (without RULES: gate of the config, else those of the package)",
    )


def add_parser(commands):
    """Add the subcommand to the parser of `wulewule`."""
    parser = commands.add_parser(
        "eval",
        help="a scorecard of what a model has learned: persona, knowledge, forgetting",
        description=(
            "Ask a model who it is (with and without the system prompt), the held-out questions of the data, and general ones; write "
            "OUT/scorecard.json and print it. Answers are kept as they come: the same command given again goes on where it stopped. "
            "persona: name and author are the shares of answers in which the assistant gives its own, leak those in which it claims to be "
            "another model (a name that is denied is neither), bleed those to neutral questions that talk of it. knowledge: token_f1 and "
            "rouge_l against the held-out answers. forgetting: perplexity of general texts, and simple tasks (checks), against --base."
        ),
        epilog="example: wulewule eval work_dirs/mine/sft/merged --base internlm/internlm2_5-1_8b-chat --data data --gate",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or id of the model")
    parser.add_argument("--adapter", metavar="DIR", help="put this adapter on the model, without merging it")
    parser.add_argument("--base", metavar="MODEL", help="the model before the training, to measure what was forgotten")
    parser.add_argument("--suite", default="persona,knowledge,forgetting", help="which, with commas between (persona,knowledge,forgetting)")
    parser.add_argument(
        "--languages", default="zh,en,other", help="what the model should know, with commas between: zh, en, other (zh,en,other)"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="config of the training, as it lies beside the checkpoints: data, template, prompt"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data files (that of the config; the packaged samples)")
    parser.add_argument("--held-out", type=float, metavar="SHARE", help=f"as in the training (that of the config; {HELD_OUT})")
    add_persona_arguments(parser, "as in the config, or the run that made the model")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for answers and scorecard (eval_MODEL)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="questions asked at a time (16)")
    parser.add_argument("--overwrite", action="store_true", help="replace the answers of another evaluation in --out")
    add_gate_argument(parser, "end with status 1")
    parser.set_defaults(run=run)


def run(args):
    """Evaluate and print the scorecard.

    Args:
        args (argparse.Namespace): the arguments above.

    Returns:
        int: exit status 0.

    Raises:
        GateError: a threshold is missed.
        WulewuleError: a setting is wrong, a model does not load.
    """
    config = _config(args.config)
    rules = gate_rules(args.gate, config)
    settings = read_settings(args, config)
    from xtuner_wulewule.evaluation import gate
    from xtuner_wulewule.evaluation.runner import evaluate
    from xtuner_wulewule.evaluation.scorecard import table
    from xtuner_wulewule.recipe.display import output_console

    gate.check_possible(rules, settings.suites, settings.base, settings.persona.system)
    found = evaluate(settings)
    console = output_console()
    console.print(f"{settings.model}{f' with {settings.adapter}' if settings.adapter else ''}", markup=False)
    console.print(described(settings.persona), markup=False)
    console.print(table(found, gate.marks(rules, found["metrics"])))
    for note in notes(found):
        console.print(note, markup=False)
    console.print(f"scorecard: {settings.out / 'scorecard.json'}", markup=False)
    gate.check(rules, found["metrics"])
    return 0


def notes(found):
    """Return what a reader of a scorecard (dict) should know (list[str])."""
    missing = []
    if "knowledge" in found["suites"] and "token_f1" not in found["metrics"]:
        missing.append(f"note: knowledge was not measured, since no question was held out of the data (held out: {found['held_out']:g})")
    if "forgetting" in found["suites"] and not found["base"]:
        missing.append("note: --base MODEL compares the perplexity with that before the training")
    return missing


def gate_rules(value, config=None):
    """Return the rules (list[Rule]) of `--gate` (str | None): its own, those of the config (dict), or those of the package."""
    from xtuner_wulewule.evaluation import gate

    if value is None:
        return []
    return gate.parse(value or (config or {}).get("gate") or gate.DEFAULT)


def read_settings(args, config=None):
    """Return the `runner.Settings` that the arguments and the config (mmengine.config.Config | None) ask for."""
    from xtuner_wulewule.evaluation.runner import Settings
    from xtuner_wulewule.evaluation.suites import LANGUAGES, SUITES
    from xtuner_wulewule.recipe.ask import template_of
    from xtuner_wulewule.recipe.plan import DATA_FILES

    suites = _some_of(SUITES, args.suite)
    if not suites:
        raise SettingsError(f"--suite {args.suite}: give some of {','.join(SUITES)}")
    languages = _some_of(LANGUAGES, args.languages)
    if not {"zh", "en"}.intersection(languages):
        raise SettingsError(f"--languages {args.languages}: give some of {','.join(LANGUAGES)}, zh or en among them")
    if args.batch_size < 1:
        raise SettingsError(f"--batch-size {args.batch_size}: at least 1")
    dataset = config.train_dataloader.dataset if config is not None else {}
    if args.data is None and "data_files" in dataset:
        files = list(dataset["data_files"])
    else:
        folder = paths.expand(args.data or paths.data_dir())
        files = [str(folder / name) for name in DATA_FILES["sft"]]
    held_out = args.held_out
    if held_out is None:
        held_out = dataset.get("held_out", 0.0) if config is not None else HELD_OUT
    return Settings(
        model=_folder(args.model, "MODEL"),
        out=paths.expand(args.out or f"eval_{Path(os.path.abspath(args.model)).name}"),
        template=(template_of(config) if config is not None else None) or _template(),
        files=files,
        held_out=held_out,
        adapter=args.adapter and str(paths.expand(args.adapter)),
        base=args.base and _folder(args.base, "--base"),
        suites=suites,
        persona=persona_of_model(args, args.adapter or args.model, persona_of_config(config), files),
        batch_size=args.batch_size,
        overwrite=args.overwrite,
        languages=languages,
    )


def _some_of(known, given):
    """Return those of the known words (tuple[str, ...]) that a text names, with commas between; none where it names another."""
    words = {word.strip() for word in given.split(",")}
    return tuple(word for word in known if word in words) if words <= set(known) else ()


def _config(file):
    if file is None:
        return None
    if not os.path.isfile(file):
        raise SettingsError(f"--config {file} is not a file; give the one that xtuner train wrote into its work folder")
    from mmengine.config import Config

    return Config.fromfile(file)


def _template():
    from xtuner.utils import PROMPT_TEMPLATE

    return PROMPT_TEMPLATE.internlm2_chat


def _folder(name, setting):
    from xtuner_wulewule.model.hub import download, find_model

    return download(find_model(name, setting=setting))
