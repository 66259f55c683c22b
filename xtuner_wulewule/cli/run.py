"""`wulewule run`: the whole recipe as one command that can be stopped and continued."""

import argparse
import os
from pathlib import Path

from xtuner_wulewule import paths
from xtuner_wulewule.cli.eval import add_gate_argument
from xtuner_wulewule.cli.persona import add_persona_arguments, persona_of_data, show_notes
from xtuner_wulewule.errors import NO_VALUE, SettingsError, StepError, no_config
from xtuner_wulewule.settings import READ_ONCE, check_key, check_number

BASES = {"1_8b": "internlm2_5-1_8b-chat", "7b": "internlm2_5-7b-chat", "tiny": None}
OWNERS = {"huggingface": "internlm", "modelscope": "Shanghai_AI_Laboratory"}  # of these models, on each hub


def add_parser(commands):
    """Add the subcommand to the parser of `wulewule`."""
    parser = commands.add_parser(
        "run",
        help="run the whole recipe: pretrain, convert, merge, tune, convert, merge, ask, evaluate",
        description=(
            "Run the recipe with XTuner's own tools: pretrain, convert, merge, tune on the merged model, convert, merge, ask the "
            "evaluation questions, make the scorecard of wulewule eval. Stop it and give the same command again: finished steps are "
            "skipped, an interrupted training is resumed from its last checkpoint, and what depends on a changed input is run again. "
            "Everything lies in --out; report.json sums it up, report.html shows it."
        ),
        epilog="example: wulewule run --size 1_8b --data data --out work_dirs/mine --deepspeed deepspeed_zero1 --lr sft=1e-4",
    )
    parser.add_argument("--size", choices=sorted(BASES), default="1_8b", help="which configs: wulewule_{pretrain,sft}_SIZE (1_8b)")
    parser.add_argument("--model", help="folder or id of the model to start from (WULEWULE_MODEL, or that of the configs)")
    parser.add_argument("--hub", choices=sorted(OWNERS), default="huggingface", help="where an id is looked up (huggingface)")
    parser.add_argument("--data", type=Path, help="folder with the data files (WULEWULE_DATA_DIR, or the packaged samples)")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything it writes")
    parser.add_argument("--stages", default="pretrain,sft", help="pretrain,sft or one of them (pretrain,sft)")
    parser.add_argument("--deepspeed", metavar="NAME", help="DeepSpeed config for the trainings, for example deepspeed_zero1")
    parser.add_argument("--nproc", type=int, default=1, metavar="N", help="processes of a training, one for each GPU (1)")
    parser.add_argument("--epochs", metavar="N", help="epochs: 3, or pretrain=3,sft=5 (as in the configs)")
    parser.add_argument("--lr", metavar="RATE", help="learning rate: 1e-4, or pretrain=3e-5,sft=2e-4 (as in the configs)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the trainings (0)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="[STAGE:]KEY=VALUE",
        help="change one value of the configs, as --cfg-options of xtuner train; may be given again, for example --set sft:model.lora.r=32",
    )
    parser.add_argument("--cfg-options", nargs="*", help=argparse.SUPPRESS)  # of xtuner train; refused with the one that is meant
    parser.add_argument("--no-eval", action="store_true", help="make no scorecard of the tuned model")
    add_persona_arguments(parser, "as in an earlier run in --out, or as the system prompt of the rows tells")
    add_gate_argument(parser, "do not hand the tuned model out")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and end")
    parser.set_defaults(run=run)


def run(args):
    """Run the recipe.

    Args:
        args (argparse.Namespace): the arguments above.

    Returns:
        int: exit status 0.

    Raises:
        WulewuleError: a setting is wrong, or a step failed.
    """
    from xtuner_wulewule.recipe.display import Display
    from xtuner_wulewule.recipe.run import commands
    from xtuner_wulewule.recipe.run import run as run_recipe

    settings = read_settings(args)
    if args.dry_run:
        print("\n".join(commands(settings)))
        return 0
    display = Display()
    display.print(f"wulewule run: {' and '.join(settings.stages)} of {settings.model}, in {settings.out}")
    try:
        report = run_recipe(settings, display)
    except StepError:
        if any(settings.out.glob("*/train/*/vis_data/scalars.json")):
            write_page(settings.out, display)  # what was trained until then, and why it ended
        raise
    show(report, display)
    write_page(settings.out, display)
    return 0


def read_settings(args):
    """Return the `Settings` that the arguments ask for; raise SettingsError or ModelError where they make no sense."""
    from xtuner_wulewule.recipe.plan import DATA_FILES, STAGES, Settings
    from xtuner_wulewule.recipe.state import kept_persona

    if args.cfg_options is not None:
        given = " ".join(["--cfg-options", *args.cfg_options])
        raise SettingsError(f"{given}: wulewule run takes --set KEY=VALUE instead, once for each value")
    stages = tuple(stage.strip() for stage in args.stages.split(","))
    if not stages or any(stage not in STAGES for stage in stages) or list(stages) != [stage for stage in STAGES if stage in stages]:
        raise SettingsError(f"--stages {args.stages}: give pretrain,sft or one of them")
    if args.nproc < 1:
        raise SettingsError(f"--nproc {args.nproc}: at least 1")
    check_number("randomness.seed", args.seed, f"--seed {args.seed}")
    _check_deepspeed(args.deepspeed)
    options = {stage: [] for stage in stages}
    numbers = ((args.epochs, READ_ONCE["max_epochs"], "--epochs", int), (args.lr, READ_ONCE["lr"], "--lr", float))
    for value, key, name, kind in numbers:
        for stage, number in per_stage(value, stages, name, kind).items():
            options[stage].append(f"{key}={number}")
    for item in args.set:
        key, equals, value = item.partition("=")
        stage, colon, key = key.rpartition(":")
        if not equals or not key:
            raise SettingsError(f"--set {item}: {NO_VALUE}")
        if colon and stage not in stages:
            raise SettingsError(f"--set {item}: {stage} is not a stage of this run ({', '.join(stages)})")
        for one in (stage,) if colon else stages:
            _check_key(key, paths.config_paths()[f"wulewule_{one}_{args.size}"], item)
            check_number(key, _parsed(value), f"--set {item}")
            options[one].append(item.removeprefix(f"{stage}:"))
    out, data = paths.expand(args.out), paths.expand(args.data or paths.data_dir())
    files = [str(data / name) for name in DATA_FILES["sft"]] if "sft" in stages else []
    persona, given, notes = persona_of_data(args, files, kept_persona(out)[1])
    show_notes(notes)
    return Settings(
        out=out,
        model=find_model(args),
        data=data,
        size=args.size,
        stages=stages,
        deepspeed=args.deepspeed,
        processes=args.nproc,
        seed=args.seed,
        options={stage: tuple(values) for stage, values in options.items()},
        evaluate=not args.no_eval,
        persona=persona,
        given=given,
        gate=read_gate(args, stages, options, persona),
    )


def read_gate(args, stages, options, persona):
    """Return the thresholds (tuple[str, ...]) of `--gate`: its own, or those of the config, or of the package; none without it."""
    from xtuner_wulewule.cli.eval import gate_rules
    from xtuner_wulewule.evaluation.gate import check_possible
    from xtuner_wulewule.evaluation.suites import SUITES
    from xtuner_wulewule.report.collect import read_config

    if args.gate is None:
        return ()
    if args.no_eval or "sft" not in stages:
        raise SettingsError(f"--gate needs the scorecard of the tuned model: {'leave --no-eval out' if args.no_eval else '--stages sft'}")
    config = read_config(Path(paths.config_paths()[f"wulewule_sft_{args.size}"]))
    for option in options["sft"]:
        if option.startswith("gate="):
            config["gate"] = option.removeprefix("gate=").strip("[]")
    rules = gate_rules(args.gate, config)
    check_possible(rules, SUITES, "the model that the run starts from", persona.system)
    return tuple(map(str, rules))


def _check_deepspeed(name):
    """Raise SettingsError where there are no DeepSpeed settings of that name (str), or they are not what DeepSpeed reads."""
    import json

    if name is None:
        return
    file = name
    if not os.path.isfile(name):
        from xtuner.configs import cfgs_name_path

        if name not in cfgs_name_path:
            raise no_config(name, "deepspeed")
        file = cfgs_name_path[name]
    try:
        json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError:
        raise SettingsError(f"--deepspeed {name}: it must be JSON: a name that xtuner list-cfg -p deepspeed shows, or a file") from None


def _parsed(value):
    """Return what a value (str) of `--set` stands for, as mmengine reads it: a number, inf too, None, or the text."""
    import ast

    for read in (ast.literal_eval, float):
        try:
            return read(value)
        except (ValueError, SyntaxError):
            continue
    return value


def _check_key(key, config, item):
    """Raise SettingsError where nothing would change: a key that is no setting of the config, or is used only while that is read."""
    import ast

    tree = ast.parse(Path(config).read_text(encoding="utf-8"))
    names = {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)}
    check_key(key, f"--set {item}", names)
    first = key.partition(".")[0]
    if first not in names:
        settings = ", ".join(sorted(names - set(READ_ONCE)))
        raise SettingsError(f"--set {item}: {first} is not in {config}; its settings are {settings}")


def per_stage(value, stages, name, kind):
    """Return {stage: number} of "3" or "pretrain=3,sft=5"; raise SettingsError where it is neither."""
    from xtuner_wulewule.recipe.plan import STAGES

    if value is None:
        return {}
    found = {}
    for item in value.split(","):
        stage, equals, number = item.rpartition("=")
        try:
            parsed = kind(number)
        except ValueError:
            parsed = 0
        if not 0 < parsed < float("inf") or (equals and stage not in STAGES):
            raise SettingsError(f"{name} {value}: give one positive number, or pretrain=NUMBER,sft=NUMBER")
        found.update({one: number for one in ((stage,) if equals else stages)})
    return {stage: number for stage, number in found.items() if stage in stages}


def find_model(args):
    """Return the folder or hub id (str) of the model to start from, after a check that it is there."""
    from xtuner_wulewule.model.hub import download
    from xtuner_wulewule.model.hub import find_model as find
    from xtuner_wulewule.recipe.resources import four_bit, free_gpu_memory

    told = os.environ.get("WULEWULE_MODEL")
    model = args.model or told or (BASES[args.size] and f"{OWNERS[args.hub]}/{BASES[args.size]}")
    if model is None:
        from xtuner_wulewule.model.tiny import tiny_model, tiny_model_dir

        return str(tiny_model_dir()) if args.dry_run else tiny_model()
    if args.dry_run:
        return model
    config = Path(paths.config_paths()[f"wulewule_sft_{args.size}"]).read_text(encoding="utf-8")
    if four_bit(config) and free_gpu_memory() is None:  # said before gigabytes are downloaded
        needs = f"--size {args.size} needs one, since it loads the model in 4 bit"
        show_notes([f"note: nvidia-smi shows no GPU here, and {needs}; --size tiny trains without"])
    setting = "WULEWULE_MODEL" if told and not args.model else "--model"
    other = "" if args.model or told else ", or take it from ModelScope with --hub modelscope"  # where a given id may have another owner
    return download(find(model, args.hub, setting, other))


def write_page(folder, display):
    """Write the page of `wulewule report` about a run, and print its verdict and where it lies; why not, where that fails: the run itself
    is not undone."""
    from xtuner_wulewule.cli import report

    try:
        page, verdict = report.write(folder)
        for line in report.lines_of(verdict):
            display.print(f"  {line}")
        display.print(f"  page: {page}   (open it in a browser)")
    except (SettingsError, OSError) as error:
        display.print(f"  page: not written, {error}")


def show(report, display):
    """Print what the report says: losses, answers, and where things lie."""
    import json

    from xtuner_wulewule.evaluation.scorecard import table

    found = json.loads(report.read_text(encoding="utf-8"))
    display.print("")
    for item in found["questions"]:
        display.print(f"  {item['question']}\n    {item['answer']}")
    display.print("")
    for step in found["steps"]:
        if "last_loss" in step:
            display.print(f"  {step['name']}: loss {step['first_loss']:.4f} -> {step['last_loss']:.4f} in {step['iterations']} iterations")
        if "metrics" in step:
            scorecard = report.parent / "eval" / "scorecard.json"
            display.console.print(table(json.loads(scorecard.read_text(encoding="utf-8"))))
        if "largest_error" in step:
            kl = step["kl_trained_merged"]
            display.print(f"  {step['name']}: {step['weights']} weights checked, KL to the model as trained {kl:.2g} nats a token")
    display.print(f"  model: {found['model']}   ask it: wulewule chat {found['model']}")
    display.print(f"  curves: tensorboard --logdir {report.parent}")
    display.print(f"  report: {report}   ({found['seconds']:.0f} s)")
