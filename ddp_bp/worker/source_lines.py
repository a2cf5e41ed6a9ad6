"""Which line of whose file an error came from, for messages that stand without a traceback."""

from __future__ import annotations

import traceback
from pathlib import Path

import ddp_bp

_PACKAGE = str(Path(ddp_bp.__file__).parent)


def innermost_line(error: BaseException) -> str:
    """` (file, line)` of the innermost frame of `error`, or nothing."""
    frames = traceback.extract_tb(error.__traceback__)
    return _words(frames[-1]) if frames else ""


def own_line(error: BaseException) -> str:
    """` (file, line)` of the user's own code in which an error of ours came up, or nothing.

    The traceback of an error that was caught begins with the frame that caught it, so that whatever is not of this
    package is what it has called: a model of the user's own.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not Path(frame.filename).is_relative_to(_PACKAGE)]
    return _words(own[-1]) if own else ""


def _words(frame: traceback.FrameSummary) -> str:
    return f" ({frame.filename}, line {frame.lineno})"
