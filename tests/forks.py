"""Many questions, each asked of a Python of its own, for the price of one start: importing the libraries takes ten seconds."""

import json
from dataclasses import dataclass
from pathlib import Path

# XTuner imports these libraries, which do not know it: what is tested begins after them
CODE = """
import json, os, sys, traceback
import datasets, deepspeed, mmengine.runner, peft, torch.utils.data, torch.utils.file_baton, transformers
assert "xtuner" not in sys.modules
for folder, code in json.loads(sys.argv[1]).items():
    child = os.fork()
    if child == 0:
        os.makedirs(folder)
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
        status = 1
        try:
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    with open(folder + ".status", "w") as file:
        file.write(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""


@dataclass(frozen=True)
class Answer:
    """What one of them said, as `subprocess.CompletedProcess` has it."""

    returncode: int
    stdout: str
    stderr: str


def ask(run, folder, questions):
    """Run each of several pieces of code in a process that has not imported XTuner.

    Args:
        run: runs a Python interpreter with its arguments to the end.
        folder (pathlib.Path): each gets a folder of its own in it, as its working directory.
        questions (dict[str, str]): the code by its name.

    Returns:
        dict[str, Answer]: by the same names.
    """
    places = {name: folder / str(number) for number, name in enumerate(questions)}
    started = run("-W", "ignore", "-c", CODE, json.dumps({str(places[name]): code for name, code in questions.items()}))
    assert started.returncode == 0, started.stderr
    texts = {name: [Path(place, file).read_text() for file in ("stdout", "stderr")] for name, place in places.items()}
    return {name: Answer(int(places[name].with_suffix(".status").read_text()), *texts[name]) for name in questions}
