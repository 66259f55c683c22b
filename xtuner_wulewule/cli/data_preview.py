"""`wulewule data preview`: rows as the model sees them, with the trained part marked."""

from itertools import groupby, islice
from operator import itemgetter

from xtuner_wulewule.cli.data_check import add_tokenizer_arguments, positive
from xtuner_wulewule.errors import DataError


def add_parser(commands):
    """Add the subcommand to the parser of `wulewule data`."""
    parser = commands.add_parser(
        "preview",
        help="show rows after the template, with the trained part marked",
        description=(
            "Show rows as the model sees them: with the template of the chat, and the part that is trained in colour, or in ⟦brackets⟧ "
            "where there is no colour. With --model also the tokens, and what is beyond --max-length, which the wulewule "
            "configs put into another row."
        ),
    )
    parser.add_argument("files", nargs="+", metavar="FILE_OR_DIR", help="data files or folders")
    add_tokenizer_arguments(parser)
    parser.add_argument("--rows", type=positive, default=3, metavar="N", help="rows of each file (3)")
    parser.set_defaults(run=run)


def run(args):
    """Print the rows; return exit status 0, or raise DataError at a row that is wrong."""
    from xtuner_wulewule.dataset.tokens import load_tokenizer, templated
    from xtuner_wulewule.dataset.validation import data_files, mapped_rows
    from xtuner_wulewule.recipe.display import output_console

    files = data_files(args.files)
    tokenizer = load_tokenizer(args.model) if args.model else None
    console = output_console()
    for file in files:
        for where, row, kind, problem in islice(mapped_rows(file), args.rows):
            if problem is not None:
                raise DataError(f"{where}: {problem}")
            parts = templated(row["conversation"], kind)
            console.print(f"{where}  {kind}", style="bold", markup=False)
            for text, style in marked(parts, tokenizer, args.max_length):
                if style == "trained" and not console.color_system:
                    text, style = f"⟦{text}⟧", ""
                elif style == "beyond" and not console.color_system:
                    text = f" ✂ beyond --max-length: {text}"
                console.print(text, style=STYLES.get(style, ""), end="", markup=False)
            console.print("\n")
    return 0


STYLES = {"trained": "bold green", "beyond": "red"}


def marked(parts, tokenizer, max_length):
    """Return [(text, "trained", "" or "beyond")] of the `segments` of a row; without a tokenizer nothing is beyond `max_length`."""
    from xtuner_wulewule.dataset.encode import BOS, EOS, Encoder

    if tokenizer is None:
        names = {BOS: "<BOS>", EOS: "<EOS>"}
        shown = [(names.get(text, text), "trained" if trained else "") for text, trained in parts]
    else:
        shown, room = [], max_length
        for (_, trained), ids in zip(parts, Encoder(tokenizer)([[part] for part in parts]), strict=True):
            ids = [token if token >= 0 else ~token for token in ids.tolist()]
            kept, beyond = ids[:room], ids[room:]
            room -= len(kept)
            shown += [(tokenizer.decode(kept), "trained" if trained else "")] if kept else []
            shown += [(tokenizer.decode(beyond), "beyond")] if beyond else []
    return [("".join(text for text, _ in group), style) for style, group in groupby(shown, key=itemgetter(1))]
