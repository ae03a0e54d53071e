"""What the scripts of this folder share: how they end, where --out leads, what is no result and what is no picture.

    if __name__ == "__main__":
        script.run(main)
"""
import contextlib
import sys
from pathlib import Path

import numpy as np


def run(main):
    """Call main(), whose result is the exit code (None: all is well). An error that a user can mend becomes one
    sentence; Ctrl-C ends with 130, as a shell expects.
    """
    try:
        if code := main():
            sys.exit(code)
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}")
    except (ValueError, ImportError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(file=sys.stderr)
        sys.exit(130)


def folder(path):
    """The folder that --out names, made now: that it cannot be should not show when all has been computed."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"--out {path}: there is a file of this name; name a folder") from None
    return Path(path)


def picture_file(path):
    """The file that --out names, for a picture."""
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--out {path}: the name of a picture ends with .png, .svg or .pdf")
    return folder(Path(path).parent) / Path(path).name


def need_numbers(array, name):
    """Weights that are damaged make NaN of everything."""
    if not np.isfinite(array).all():
        raise ValueError(f"the model in {name} computes NaN or infinity: its weights are damaged, or its training went "
                         "wrong")


@contextlib.contextmanager
def drawing():
    """Inside, a picture is drawn and announced; without matplotlib, this says how to get it."""
    try:
        yield
    except ImportError:
        print('\nFor the picture, install matplotlib: pip install -e ".[examples]"')
