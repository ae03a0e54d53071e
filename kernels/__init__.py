"""The operations of tinyllm/ops as Triton kernels: same file names, function names and argument order.

Arrays are torch tensors on one device; torch allocates and views them, the kernels compute. Without a GPU set
TRITON_INTERPRET=1 before Python starts, and Triton runs the same kernels in NumPy, slowly.

Reading order:

1. elementwise.py   what a program, a grid and a mask are
2. reduce.py        a loop inside a program
3. embedding.py     loads at computed addresses; atomic additions
4. norm.py          a whole row in registers; sums shared between programs in two launches
5. linear.py        the tiled matrix product, and one epilogue
6. loss.py          the online softmax; an array that becomes its own gradient
7. attention.py     both of them together
8. optim.py         one flat buffer, and numbers that never visit the host
9. movement.py      what needs no kernel
10. runtime.py      where all the arrays come from
"""

from .attention import self_attention_backward, self_attention_forward
from .elementwise import add_backward, add_forward
from .embedding import embedding_backward, embedding_forward
from .linear import linear_backward, linear_forward, linear_gelu_backward, linear_gelu_forward
from .loss import linear_cross_entropy_backward, linear_cross_entropy_forward
from .movement import reshape_backward, reshape_forward
from .norm import add_layer_norm_backward, add_layer_norm_forward, layer_norm_backward, layer_norm_forward
from .optim import adamw_step, grad_norm
from .reduce import unbroadcast
from .runtime import capture, copy, device, empty, from_numpy, own, to_numpy

__all__ = [
    "adamw_step", "add_backward", "add_forward", "add_layer_norm_backward", "add_layer_norm_forward", "capture",
    "copy", "device", "embedding_backward", "embedding_forward", "empty", "from_numpy", "grad_norm",
    "layer_norm_backward", "layer_norm_forward", "linear_backward", "linear_cross_entropy_backward",
    "linear_cross_entropy_forward", "linear_forward", "linear_gelu_backward", "linear_gelu_forward",
    "reshape_backward", "reshape_forward", "self_attention_backward", "self_attention_forward", "to_numpy",
    "unbroadcast",
]

name = "triton"  # the backend's
