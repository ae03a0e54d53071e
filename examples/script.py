"""What the scripts of this folder share: how they end, and what happens where a picture cannot be drawn.

    if __name__ == "__main__":
        script.run(main)
"""
import contextlib
import sys


def run(main):
    """Call main(), whose result is the exit code (None: all is well). An error that a user can mend becomes one
    sentence; Ctrl-C ends with 130, as a shell expects.
    """
    try:
        if code := main():
            sys.exit(code)
    except (ValueError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def drawing():
    """Inside, a picture is drawn and announced; without matplotlib, this says how to get it."""
    try:
        yield
    except ImportError:
        print('\nFor the picture, install matplotlib: pip install -e ".[examples]"')
