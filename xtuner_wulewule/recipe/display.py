"""What a person sees while the steps run: on a terminal a live line, elsewhere a line every 30 s and when a step ends."""

import time
from contextlib import contextmanager

from xtuner_wulewule.dataset.progress import repeated
from xtuner_wulewule.errors import StepError


def output_console():
    """Return a rich.console.Console for standard output; where its reader has gone it raises BrokenPipeError, as `print` does."""
    from rich.console import Console

    class OutputConsole(Console):
        def on_broken_pipe(self):  # rich itself would end with status 1
            raise

    return OutputConsole(highlight=False, soft_wrap=True)


class Display:
    """Prints to standard output, step by step."""

    def __init__(self):
        self.console = output_console()
        self.number = 0
        self.total = None

    def print(self, text):
        """Print a line of plain text."""
        self.console.print(text, markup=False)

    def skip(self, name, why):
        """Show that a step need not run, and why."""
        self.print(f"\n{self._next()} {name}: {why}")

    def _next(self):
        self.number += 1
        return f"[{self.number}/{self.total}]" if self.total else f"[{self.number}]"

    @contextmanager
    def step(self, name, what):
        """Show a step while it runs and how it ended.

        Args:
            name (str): its name.
            what (str): what it runs; shown above it.

        Yields:
            Step: whose `progress` may be told of training iterations.
        """
        self.print(f"\n{self._next()} {name}: {what}")
        step = Step(name)
        begin = time.monotonic()
        try:
            if self.console.is_terminal:
                from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

                with Progress(
                    SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=self.console, transient=True
                ) as bar:
                    task = bar.add_task(name)
                    step.show = lambda text: bar.update(task, description=text)
                    yield step
            else:
                with repeated(lambda: self.print(f"    {time.monotonic() - begin:.0f} s: {step.now}")):
                    yield step
        except StepError as error:
            self.print(f"    failed after {time.monotonic() - begin:.0f} s")
            for line in error.last_lines:
                self.print(f"    | {line}")
            raise StepError(f"{name} {error}" if str(error).startswith("ended with") else str(error), error.last_lines) from None
        self.print(f"    done in {time.monotonic() - begin:.0f} s{step.ended()}")


class Step:
    """One running step.

    Args:
        name (str): its name.
    """

    def __init__(self, name):
        self.name = name
        self.first = self.last = None
        self.now = "still running"
        self.show = None

    def progress(self, progress):
        """Take note of a `TrainingProgress`, or of words (str), and show it on a terminal."""
        if isinstance(progress, str):
            self.now = progress
        else:
            self.first = self.first or progress
            self.last = progress
            done = f"iteration {progress.iteration}/{progress.iterations}"
            self.now = f"{done}  loss {progress.loss:.4f}  lr {progress.lr:.2e}  remaining {progress.eta}"
        if self.show is not None:
            self.show(self.now)

    def ended(self):
        """Return what to add to the closing line (str)."""
        if self.first is None:
            return ""
        return f": {self.last.iterations} iterations, loss {self.first.loss:.2f} -> {self.last.loss:.2f}"
