"""`wulewule chat`: XTuner's chat with the template and the system prompt of the training."""

import os
from pathlib import Path

from xtuner_wulewule.cli.persona import add_persona_arguments, described, persona_of_model, show_notes
from xtuner_wulewule.errors import ModelError

# what libraries warn of here is not the user's to mend; whoever sets these otherwise sees it
QUIET = {"PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}


def add_parser(commands):
    """Add the subcommand to the parser of `wulewule`."""
    parser = commands.add_parser(
        "chat",
        help="talk to a merged model, with the template and the system prompt of its training",
        description="Start xtuner chat on a merged model with the InternLM2 template and the system prompt that the tuning used.",
        epilog="an empty line ends your question; EXIT (or exit), Ctrl-D and Ctrl-C end the chat, RESET (or reset) begins a new one",
    )
    parser.add_argument("model", type=Path, help="folder of the merged model")
    add_persona_arguments(parser, "as in the run that made the model")
    parser.add_argument("--temperature", default="0", help="0 answers the same every time (0)")
    parser.add_argument("--max-new-tokens", default="512", help="longest answer in tokens (512)")
    parser.set_defaults(run=run)


def run(args):
    """Become XTuner's chat; raise ModelError where there is no model."""
    if not args.model.exists():
        raise ModelError(f"there is no {args.model}: give the folder of a merged model, such as OUT/sft/merged")
    if not (args.model / "config.json").is_file():
        raise ModelError(f"model folder {args.model} has no config.json: give the folder of a merged model, such as OUT/sft/merged")
    persona = persona_of_model(args, args.model)
    show_notes([described(persona)])
    command = chat_command(args.model, persona.system, args.temperature, args.max_new_tokens)
    os.environ["PYTHONUTF8"] = "1"
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    os.execv(command[0], command)


def chat_command(model, system, temperature="0", max_new_tokens="512"):
    """Return the command line (list[str]) of the chat; half precision on a GPU, where there is one, else float32."""
    from xtuner_wulewule.recipe.process import tool_command
    from xtuner_wulewule.recipe.resources import free_gpu_memory

    arguments = [model, "--prompt-template", "internlm2_chat", "--temperature", temperature, "--max-new-tokens", max_new_tokens]
    if free_gpu_memory() is None:
        arguments += ["--torch-dtype", "fp32"]
    if system:
        arguments += ["--system", system]
    return tool_command("chat", *arguments)
