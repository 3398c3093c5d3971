"""The command line: ``amc ls | show | search | resume | evaluate | finetune | export | compare |
sweep | pareto | report | profile | check``.

Exit status: 0 done; 2 for a mistake of the user's (one line on stderr); 1 for a failure; 130 for
Ctrl-C.
"""

from __future__ import annotations

import sys

from amc.cli import searching, results, comparing, checking  # isort: skip - the order in --help
from amc.cli.console import Interrupted, app, err, say
from amc.errors import UserError

__all__ = ["app", "checking", "comparing", "main", "results", "searching"]


def main() -> None:
    """The entry point of the command ``amc``."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        say(f"amc: {error}", to=err)
        sys.exit(2)
    except Interrupted as error:
        say(f"amc: {error}", to=err)
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
