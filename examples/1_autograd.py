"""1. Autograd on a graph small enough to check by hand.

    python examples/1_autograd.py

Writes runs/autograd.png (with Graphviz or matplotlib) and runs/autograd.dot,
which GitHub and any Graphviz viewer can show.
"""
import argparse
from pathlib import Path

import tinyllm
from tinyllm import Tensor

argparse.ArgumentParser(description="Autograd on a graph small enough to check by hand; takes no options.").parse_args()
print("A tensor remembers how it was made. Here a is used twice, once inside b and once beside it (a diamond).")
print("This takes a second and ends with a picture.\n")

a = Tensor(2.0, requires_grad=True)
w = Tensor(-0.5, requires_grad=True)
b = a * w                   # -1
c = b.tanh()                # tanh(-1)
loss = c * c + a            # c^2 + a
loss.backward(retain_graph=True)        # retain_graph: keep the graph, to draw it below

tanh = c.item()
print("loss = tanh(a w)^2 + a           at a = 2, w = -0.5:", f"{loss.item():.6f}")
print("d loss / d w by the tape:                           ", f"{w.grad:.6f}")
print("the same by hand, 2 tanh(aw) (1 - tanh(aw)^2) a:    ", f"{2 * tanh * (1 - tanh**2) * 2.0:.6f}")
print("d loss / d a by the tape, along both paths:         ", f"{a.grad:.6f}")
print("by hand, 2 tanh(aw) (1 - tanh(aw)^2) w + 1:         ", f"{2 * tanh * (1 - tanh**2) * -0.5 + 1:.6f}")

print("\nWhoever writes a backward pass checks it against finite differences, in float64:")
x = Tensor([[0.3, -1.2], [2.0, 0.1]]).data.astype("float64")
inputs = [Tensor(x, requires_grad=True), Tensor(x.T, requires_grad=True)]
print("  gradcheck of softmax(x @ y):", tinyllm.gradcheck(lambda x, y: tinyllm.functional.softmax(x @ y), inputs))

print("\nAnd a descent: twenty steps of w -= 0.1 * dloss/dw, a held still.")
a = Tensor(2.0)
w = Tensor(-0.5, requires_grad=True)
for step in range(20):
    w.grad = None
    loss = (a * w).tanh() * (a * w).tanh() + a
    loss.backward()
    if step % 5 == 0:
        print(f"  step {step:2d}   w {w.item():+.4f}   loss {loss.item():.6f}")
    w.data = w.data - 0.1 * w.grad
print("  the loss falls to a = 2, as tanh(0) = 0")

Path("runs").mkdir(exist_ok=True)
a, w = Tensor(2.0, requires_grad=True), Tensor(-0.5, requires_grad=True)
c = (a * w).tanh()
loss = c * c + a
loss.backward(retain_graph=True)
tinyllm.draw(loss, "runs/autograd.dot", names={a: "a", w: "w"})
try:
    tinyllm.draw(loss, "runs/autograd.png", names={a: "a", w: "w"})
    print("\nThe graph, with a gradient norm in every box: runs/autograd.png (and runs/autograd.dot)")
except ImportError as error:
    print(f"\nThe graph is in runs/autograd.dot. {error}")
