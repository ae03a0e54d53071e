"""Two switches for the tape: whether it records, and whether it looks for NaN."""
import contextlib

recording = True
anomaly = False


@contextlib.contextmanager
def no_grad():
    """Inside `with no_grad():` nothing is put on the tape and nothing is kept for a backward pass."""
    global recording
    before, recording = recording, False
    try:
        yield
    finally:
        recording = before


@contextlib.contextmanager
def detect_anomaly():
    """Inside `with detect_anomaly():` the operation that makes the first NaN, forward or backward,
    raises and is named.
    """
    global anomaly
    before, anomaly = anomaly, True
    try:
        yield
    finally:
        anomaly = before
