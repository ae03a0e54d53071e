"""The log of a training run: log.jsonl, one JSON object a line, and loss.png, the picture of it."""
import contextlib
import json


class Log:
    """A file with one JSON object a line, and the picture of it. Opened for a resumed run, it drops what came later."""

    def __init__(self, path, done):
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() and done else []
        self.path, self.rows = path, []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):      # a line that a crash cut short
                row = json.loads(line)
                if row["step"] <= done:
                    self.rows.append(row)
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")

    def write(self, **row):
        """Append one object; at once, so that a killed run has its log."""
        self.rows.append(row)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def plot(self, path):
        """Training and validation loss over the steps; without matplotlib there is no picture."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        for key, label, style in (("loss", "training (mean since the last point)", "-"),
                                  ("val_loss", "validation", "o-")):
            points = [(row["step"], row[key]) for row in self.rows if key in row]
            style = "o" if len(points) == 1 else style
            axes.plot(*zip(*points) if points else ((), ()), style, label=label, markersize=4, linewidth=1)
        axes.set(xlabel="step", ylabel="loss (nats per token)", title="The loss while the model learns")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=120)
