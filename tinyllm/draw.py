"""Draw a graph: which operation made what, with shapes and, after backward(), the size of each gradient."""
import shutil
import subprocess
from pathlib import Path

import numpy as np

from . import backend
from .tensor import Tensor


def draw(tensor, path=None, names=None):
    """The graph behind `tensor` as Graphviz DOT text; with a path, also written there.

    path: ends in .dot (the text), .svg or .png (a picture: by Graphviz where its program `dot` is installed, else by
    matplotlib). names: {tensor: "name"} for leaves, or a Module, whose parameter names are taken. Gradient norms appear
    after loss.backward(retain_graph=True); without retain_graph the graph is gone by then, and drawing it is an error.
    """
    if hasattr(names, "named_parameters"):
        names = {p: name for name, p in names.named_parameters()}
    vertices, edges = _collect(tensor, {id(t): name for t, name in (names or {}).items()})
    text = _dot(vertices, edges)
    if path is not None:
        path = Path(path)
        if path.suffix in (".dot", ".gv"):
            path.write_text(text, encoding="utf-8")
        elif path.suffix not in (".svg", ".png"):
            raise ValueError(f'draw: "{path}" must end in .dot, .svg or .png')
        elif shutil.which("dot"):
            subprocess.run(["dot", "-T" + path.suffix[1:], "-o", str(path)], input=text.encode(), check=True)
        else:
            _plot(vertices, edges, path)
    return text


def _collect(tensor, names):
    """vertices: {key: (label, is_leaf)}, inputs before what is made of them; edges: [(from, to)]."""
    found, todo = {}, [tensor]
    while todo:                                     # depth first, without recursion
        t = todo.pop()
        key = _key(t)
        if key in found:
            continue
        found[key] = t
        if t.node is not None:
            if t.node.inputs is None:
                raise ValueError(f"draw: backward() freed the graph at {t.node.name}; draw before it, or call "
                                 "backward(retain_graph=True)")
            todo.extend(i for i in t.node.inputs if isinstance(i, Tensor))
    vertices, edges = {}, []
    for t in sorted(found.values(), key=lambda t: -1 if t.node is None else t.node.number):
        vertices[_key(t)] = (_label(t, names), t.node is None)
        if t.node is not None:
            edges += [(_key(i), _key(t)) for i in t.node.inputs if isinstance(i, Tensor)]
    return vertices, edges


def _key(t):
    return f"op{t.node.number}" if t.node is not None else f"leaf{id(t)}"


def _label(t, names):
    if t.node is None:
        kind = "parameter" if t.requires_grad else "constant"
        value = f" = {t.item():.4g}" if t.shape == () else ""
        lines, grads = [names.get(id(t), kind) + value], [t.grad]
    else:
        lines, grads = [t.node.name], t.node.douts or [None]
    if t.shape or t.node is not None:
        lines.append(" x ".join(map(str, t.shape)) or "number")
    norms = [np.linalg.norm(backend.of(g).to_numpy(g)) for g in grads if g is not None]
    return lines + [f"|grad| {norm:.3g}" for norm in norms]


def _dot(vertices, edges):
    lines = ["digraph {", "  rankdir=LR;", '  node [fontname="Helvetica", fontsize=11];']
    for key, (label, leaf) in vertices.items():
        style = 'shape=box, style="rounded,filled", fillcolor="#e8eefc"' if leaf else "shape=box"
        text = "\\n".join(label).replace('"', '\\"')
        lines.append(f'  {key} [label="{text}", {style}];')
    return "\n".join(lines + [f"  {a} -> {b};" for a, b in edges] + ["}"]) + "\n"


def _plot(vertices, edges, path):
    """The same picture by matplotlib: a column per distance from the leaves."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('draw: a picture needs Graphviz (its program "dot") or matplotlib: pip install matplotlib; '
                          "a path that ends in .dot needs neither") from error
    inputs = {key: [a for a, b in edges if b == key] for key in vertices}
    outputs = {key: [b for a, b in edges if a == key] for key in vertices}
    column = {}
    for key in vertices:                            # inputs come first in `vertices`
        column[key] = 1 + max((column[a] for a in inputs[key]), default=-1)
    for key in reversed(vertices):                  # a leaf stands just left of its first use
        if not inputs[key] and outputs[key]:
            column[key] = min(column[b] for b in outputs[key]) - 1
    row = _rows(vertices, inputs, column)
    width, height = max(column.values()) - min(column.values()) + 1, max(row.values()) - min(row.values()) + 1
    figure = Figure(figsize=(1.5 * width, 0.9 * height + 0.9), dpi=120)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(min(column.values()) - 0.5, max(column.values()) + 0.5),
             ylim=(max(row.values()) + 1.3, min(row.values()) - 0.7))
    axes.axis("off")
    boxes = {key: axes.text(column[key], row[key], "\n".join(label), ha="center", va="center", fontsize=8, zorder=3,
                            bbox={"boxstyle": "round,pad=0.3", "facecolor": "#e8eefc" if leaf else "white",
                                  "edgecolor": "#333333"}) for key, (label, leaf) in vertices.items()}
    figure.draw_without_rendering()                 # now the boxes know their size, and arrows can end at them
    for a, b in edges:
        distance = column[b] - column[a]
        bend = 0.9 / distance if distance > 1 else 0            # around the boxes between, equally far for all:
        bend = -bend if vertices[a][1] else bend                # above them from a leaf, else below
        axes.annotate("", (column[b], row[b]), (column[a], row[a]), zorder=2, arrowprops={
            "arrowstyle": "-|>", "color": "#555555", "connectionstyle": f"arc3,rad={bend}",
            "patchA": boxes[a].get_bbox_patch(), "patchB": boxes[b].get_bbox_patch()})
    figure.savefig(path)


def _rows(vertices, inputs, column):
    """A height for each vertex: operations near the mean of the operations that feed them, leaves above them."""
    row = {}
    for c in sorted(set(column.values())):
        members = [key for key in vertices if column[key] == c]
        fed = {key: [row[a] for a in inputs[key] if inputs[a]] for key in members}
        operations = sorted((key for key in members if inputs[key]), key=lambda key: np.mean(fed[key] or [0.0]))
        middle = np.mean([r for key in operations for r in fed[key]] or [0.0])
        for i, key in enumerate(operations):
            row[key] = middle + i - (len(operations) - 1) / 2
        top = min((row[key] for key in operations), default=0.0)
        for i, key in enumerate(key for key in members if not inputs[key]):
            row[key] = top - 1 - i
    return row
