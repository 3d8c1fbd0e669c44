"""What the scripts at the root stand on: one concern a file, none of which imports a script.

The scripts import it before anything that takes long, for what is below.
"""

import sys
from types import TracebackType


def end_quietly(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Ctrl-C while PyTorch is being imported is no fault: it needs no traceback."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = end_quietly
