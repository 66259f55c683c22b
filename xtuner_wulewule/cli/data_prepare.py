"""`wulewule data pretrain`, `identity`, `huixiangdou` and `convert`: making data files."""

import shlex
import sys

from xtuner_wulewule import prompts

FORMATS = ("wulewule", "sharegpt", "alpaca", "openai")


def add_parser(subcommands):
    """Add the subcommands to the parser of `wulewule data`."""
    _add_pretrain(subcommands)
    _add_identity(subcommands)
    _add_huixiangdou(subcommands)
    _add_convert(subcommands)


def _add(subcommands, name, help, description, run, epilog):
    parser = subcommands.add_parser(name, help=help, description=description, epilog=epilog)
    parser.add_argument("--out", required=True, metavar="FILE", help="the JSON Lines file to make")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where it exists")
    parser.set_defaults(run=run)
    return parser


def _add_server_options(parser):
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="longest wait for an answer (60)")
    parser.add_argument("--retries", type=int, default=4, metavar="N", help="further tries after a failure, with growing pauses (4)")
    parser.add_argument("--requests-per-minute", type=float, metavar="N", help="requests a minute at most, tries included (no limit)")


def _add_pretrain(subcommands):
    parser = _add(
        subcommands,
        "pretrain",
        "pretraining data from a folder of text files",
        'Split the text files of a folder and of its folders into rows {"text": …}, in the order of their names (2.txt '
        "before 10.txt). A row ends "
        "where a paragraph ends, else where a sentence ends, else between clauses or words. UTF-8, UTF-16 with a byte "
        "order mark and GB18030 are "
        "told apart. No character is lost but white space between rows. A run that was killed goes on when the same "
        "command is given again.",
        run_pretrain,
        "example: wulewule data pretrain books --out data/heishenghua_pretraining.jsonl",
    )
    parser.add_argument("folder", metavar="TXT_DIR", help="the folder")
    parser.add_argument("--chunk-size", type=int, default=2000, metavar="N", help="characters of a row at most (2000)")
    parser.add_argument("--overlap", type=int, default=0, metavar="N", help="characters at most that a row repeats from the one before (0)")
    parser.add_argument("--pattern", default="*.txt,*.md", metavar="NAMES", help="which files (*.txt,*.md)")


def _add_identity(subcommands):
    parser = _add(
        subcommands,
        "identity",
        "conversations about who the assistant is",
        "Make conversations about the assistant's name and author from templates, without a server. With --api-base "
        "and --model each question and "
        "answer is put in other words by an OpenAI-compatible server; its key is read from the environment variable "
        "OPENAI_API_KEY and from nowhere "
        "else. What the server cannot put in other words keeps the words of its template, and is reported. A run that "
        "was killed goes on when "
        "the same command is given again.",
        run_identity,
        "example: wulewule data identity --name 悟了悟了 --author xzyun2011 --out data/self_cognition_100.jsonl",
    )
    parser.add_argument("--name", required=True, help="name of the assistant, or several with commas between: Chinese first, English last")
    parser.add_argument("--author", required=True, help="who made it")
    parser.add_argument("--lang", default="zh,en", help="zh,en or one of them (zh,en)")
    parser.add_argument("--number", type=int, metavar="N", help="rows, of each kind of question its share (each question once)")
    parser.add_argument(
        "--general", type=int, default=0, metavar="N", help="besides, N rows about other things, so that the persona keeps out of them (0)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which answers, and the order of the rows (0)")
    parser.add_argument(
        "--system",
        metavar="TEXT",
        help="system prompt of the rows, '' for none (WULEWULE_SYSTEM, or that of the package, which speaks of its game, with this name "
        "and author in it)",
    )
    parser.add_argument("--api-base", metavar="URL", help="address of an OpenAI-compatible server, for example http://127.0.0.1:8000/v1")
    parser.add_argument("--model", metavar="NAME", help="the server's name of the model")
    _add_server_options(parser)


def _add_huixiangdou(subcommands):
    parser = _add(
        subcommands,
        "huixiangdou",
        "conversations with a running HuixiangDou server",
        "Ask a HuixiangDou server (/huixiangdou_inference) and write the conversations. QUESTIONS has a question a "
        "line; or, where its name ends "
        'in .jsonl, a conversation a line: a string, a list of strings, or {"questions": [strings]}. The turns before '
        "a question are sent as "
        '"history"; the published server ignores them, so there each question must be understood alone. What has no answer is written to '
        "FILE.rejected.jsonl with the reason. A run that was killed goes on when the same command is given again.",
        run_huixiangdou,
        "example: wulewule data huixiangdou questions.txt --out data/huixiangdou_conversations.jsonl",
    )
    parser.add_argument("questions", metavar="QUESTIONS", help="the file of questions")
    parser.add_argument("--server", default="http://127.0.0.1:23333", metavar="URL", help="address of the server (http://127.0.0.1:23333)")
    parser.add_argument(
        "--system", metavar="TEXT", help="another system prompt; '' for none (WULEWULE_SYSTEM, that of WULEWULE_NAME, or of the package)"
    )
    _add_server_options(parser)


def _add_convert(subcommands):
    parser = _add(
        subcommands,
        "convert",
        "from and to ShareGPT, Alpaca and OpenAI messages",
        'Convert conversations from one format to another. Keys that a format does not define (such as "id") stay in '
        "the row. What the other "
        "format cannot hold (tool calls, images, two questions in a row) is an error with file and line, and nothing is written.",
        run_convert,
        "example: wulewule data convert sharegpt.json --from sharegpt --to wulewule --out data/huixiangdou_conversations.jsonl",
    )
    parser.add_argument("file", metavar="FILE", help="JSON Lines, or a JSON array")
    parser.add_argument("--from", required=True, choices=FORMATS, dest="source", help="its format; wulewule is the training guide's")
    parser.add_argument("--to", required=True, choices=FORMATS, dest="target", help="the format to make")
    parser.add_argument("--system", default="", metavar="TEXT", help="system prompt of the rows that have none (they stay without)")


def _say_next(out, *options):
    print(f"next: {shlex.join(['wulewule', 'data', 'check', out, *options])}")


def run_pretrain(args):
    """Make pretraining data; return exit status 0."""
    from xtuner_wulewule.dataset.prepare.chunks import prepare

    found = prepare(args.folder, args.out, args.pattern, args.chunk_size, args.overlap, args.overwrite)
    for file in found["empty"]:
        print(f"{file}: there is no text in it", file=sys.stderr)
    encodings = ", ".join(f"{number} {name.upper().removesuffix('-SIG')}" for name, number in found["encodings"].items())
    kept = f", {found['kept']} of them done before" if found["kept"] else ""
    print(f"{args.out}: {found['rows']} rows from {found['files']} files ({encodings}{kept})")
    _say_next(args.out)
    return 0


def run_identity(args):
    """Make identity conversations; return exit status 0."""
    from xtuner_wulewule.dataset.prepare.identity import prepare

    found = prepare(args)
    for note in found["kept"]:
        print(f"row {note['row']} keeps the words of its template: {note['reason']}", file=sys.stderr)
    kept = f", {len(found['kept'])} of them in the words of their template" if args.api_base else ""
    print(f"{args.out}: {found['rows']} rows{kept}")
    names, author, system = prompts.names_of(args.name), args.author.strip(), found["system"]
    other, options = not set(names) <= set(prompts.NAMES), []
    if other or system and system != prompts.WULEWULE_SYSTEM:
        own = {"system": system} if system != prompts.system_prompt(names[0], author) else {}
        values = {"name": ",".join(names), "author": author, **own}
        variables = " ".join(f"{prompts.VARIABLES[key]}={shlex.quote(value)}" for key, value in values.items())
        told = prompts.told_by(system) is not None
        options = [] if told else ["--name", values["name"], "--author", author]
        found_by = "wulewule run finds it in these rows, xtuner train needs: " if told else ""
        print(f"training and evaluation must know who it is: {found_by}export {variables}")
    if args.system is None:
        whose = ", the package's about its game" if system == prompts.system_prompt(names[0], author) else ""
        print(f"system prompt of the rows{whose} (--system TEXT gives your own, '' none): {system or 'none'}")
    _say_next(args.out, *options)
    return 0


def run_huixiangdou(args):
    """Ask a HuixiangDou server; return exit status 0, or 1 where it answered nothing."""
    from xtuner_wulewule.dataset.prepare.huixiangdou import prepare

    system = prompts.current().system if args.system is None else args.system
    found = prepare(args.questions, args.server, args.out, system, args.timeout, args.retries, args.requests_per_minute, args.overwrite)
    rejected = found["rejected"]
    for note in rejected:
        print(f"{note['where']}: turn {note['turn']} has no answer: {note['reason']}", file=sys.stderr)
    failed = sum(note["failed"] for note in rejected)
    lists = f"; {len(rejected) - failed} refused and {failed} failed, see {args.out}.rejected.jsonl" if rejected else ""
    print(f"{args.out}: {found['rows']} conversations{lists}")
    if not found["rows"]:
        return 1
    _say_next(args.out)
    return 0


def run_convert(args):
    """Convert a data file; return exit status 0."""
    from xtuner_wulewule.dataset.prepare.formats import convert

    print(f"{args.out}: {convert(args.file, args.source, args.target, args.out, args.overwrite, args.system)} rows")
    if args.target == "wulewule":  # the others have to be converted first
        _say_next(args.out)
    return 0
