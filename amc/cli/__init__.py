"""The command line: ``amc ls | show | search | resume | apply | evaluate | finetune | export |
compare | sweep | pareto | report | profile | check``.

Exit status: 0 done; 2 for a mistake of the user's (one line on stderr); 1 for a failure; 130 for
Ctrl-C.

Nothing is imported here: Ctrl-C is heeded before the imports begin.
"""

import os
import signal

__all__ = ["main"]


def main() -> None:
    """The entry point of the command ``amc``. Ctrl-C ends it at once, without a word, until a
    command has something to lose and listens itself (`amc.progress.ConsoleReport.listen`).
    """
    signal.signal(signal.SIGINT, _leave)
    try:
        from amc.cli.running import run

        run()
    finally:
        signal.signal(signal.SIGINT, _leave)  # while Python shuts down


def _leave(number: int, frame: object) -> None:
    # An exception would be lost, or turned into another one, in what is being imported.
    if os.isatty(2):
        os.write(2, b"\x1b[?25h\n")  # a progress bar hides the cursor
    os._exit(130)
