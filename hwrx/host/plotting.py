"""Imports Matplotlib so that MPLBACKEND cannot stop it: to be imported before anything of Matplotlib's.

The variable is for windows; hwrx draws into files, without any. A notebook sets it, and Matplotlib does not even come
up if it names what is not installed where hwrx runs. It goes on to hold for the program that hwrx is part of.
"""

from __future__ import annotations

import contextlib
import os

_kept = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib as matplotlib
finally:
    if _kept is not None:
        os.environ["MPLBACKEND"] = _kept
if _kept is not None:
    with contextlib.suppress(ValueError):  # it names nothing, and there is nothing to hold
        matplotlib.rcParams["backend"] = _kept
