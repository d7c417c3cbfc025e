"""The figures of a report: one file a figure, `registry` lists them, `styles` and `layout` are what they share."""

import locale
import os
import sys
from contextlib import chdir, suppress
from importlib.util import find_spec
from pathlib import Path


def _import_matplotlib() -> None:
    """MPLBACKEND may name a backend that is not installed here (a notebook's, inherited by a command): matplotlib would
    not be imported. The figures need none; where the name is good it holds for the caller's own plots as ever.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib as mpl
    except (locale.Error, ValueError):
        spec = find_spec("matplotlib")
        for module in [name for name in sys.modules if name.startswith("matplotlib.")]:
            del sys.modules[module]  # parts of the matplotlib that was not imported
        with chdir(Path(str(spec and spec.origin)).with_name("mpl-data")):
            import matplotlib as mpl
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend is not None:
        with suppress(ValueError):
            mpl.rcParams["backend"] = backend


_import_matplotlib()
