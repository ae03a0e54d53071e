"""Pictures of graphs."""

import numpy as np
import pytest

from tinyllm import Tensor, draw, nn


def small_graph():
    a, b = Tensor(3.0, requires_grad=True), Tensor(np.ones((2, 2), np.float32))
    return a, (a * b).sum()


def test_draw_shows_operations_shapes_names_and_edges():
    a, loss = small_graph()
    text = draw(loss, names={a: "alpha"})
    assert text.startswith("digraph {")
    assert all(label in text for label in ('"alpha = 3"', '"constant\\n2 x 2"', '"mul\\n2 x 2"', '"sum\\nnumber"'))
    assert text.count("->") == 3 and "|grad|" not in text


def test_draw_shows_gradients_after_backward():
    _, loss = small_graph()
    loss.backward(retain_graph=True)
    text = draw(loss)
    assert '"mul\\n2 x 2\\n|grad| 2"' in text and '"parameter = 3\\n|grad| 4"' in text


def test_draw_takes_names_from_a_module():
    layer = nn.Linear(2, 3)
    text = draw(layer(Tensor([[1.0, 2.0]])), names=layer)
    assert '"weight\\n3 x 2"' in text and '"bias\\n3"' in text


def test_draw_says_that_the_graph_is_gone():
    _, loss = small_graph()
    loss.backward()
    with pytest.raises(ValueError, match="freed the graph at sum.*retain_graph=True"):
        draw(loss)


@pytest.mark.parametrize("name, start", [("g.dot", b"digraph"), ("g.png", b"\x89PNG"), ("g.svg", b"<?xml")])
def test_draw_writes_files_without_graphviz(name, start, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: None)
    draw(small_graph()[1], tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_draw_refuses_other_files(tmp_path):
    with pytest.raises(ValueError, match="must end in .dot, .svg or .png"):
        draw(small_graph()[1], tmp_path / "g.jpg")
