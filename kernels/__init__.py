"""The operations of tinyllm/ops as Triton kernels: same file names, function names and argument order.

Arrays are torch tensors on one device; torch allocates and views them, the kernels compute. Without a GPU set
TRITON_INTERPRET=1 before Python starts, and Triton runs the same kernels in NumPy, slowly.

Reading order:

 1. map.py              what a program, a grid and a mask are; one kernel for all element-wise operations
 2. elementwise.py      the functions it applies          activation.py   and more of them
 3. reduce.py           a loop inside a program
 4. embedding.py        loads at computed addresses; atomic additions
 5. norm.py             a whole row in registers; sums shared between programs in two launches
 6. softmax.py          the online softmax
 7. loss.py             an array that becomes its own gradient
 8. matmul.py           the tiled matrix product          matmul_tma.py   the same on Hopper     product.py   which one
 9. linear.py           layers; what follows a product happens in its registers
                        fused_linear.py   all that stands around a layer, for a few rows
                        last.py           many programs and one result, in one launch
                        linear_int8.py    and weights of one byte
10. attention.py        softmax and product in one; with it attention_tiles.py, attention_gradients.py, and
                        attention_decode.py
11. random.py           random numbers without a state    dropout.py, sample.py and shortlist.py
12. optim.py            one flat buffer, and numbers that never visit the host
13. recurrent.py        a launch for each step of a sequence
14. rope.py             a small one                       movement.py     what needs no kernel
15. configs.py          how large the tiles are           runtime.py      where all the arrays come from
16. graph.py            a whole step as one launch
17. interpreter.py      Triton's interpreter, made to tell the truth
"""
# ruff: noqa: F401

from .activation import gelu_backward, gelu_forward, silu_backward, silu_forward, swiglu_backward, swiglu_forward
from .attention import attention_backward, attention_forward, self_attention_backward, self_attention_forward
from .attention_decode import cached_attention, kv_append, kv_reorder, text_positions
from .dropout import dropout_backward, dropout_forward
from .elementwise import (
    add_backward, add_forward, div_backward, div_forward, erf_backward, erf_forward, exp_backward, exp_forward,
    log_backward, log_forward, maximum_backward, maximum_forward, mul_backward, mul_forward, neg_backward,
    neg_forward, pow_backward, pow_forward, relu_backward, relu_forward, sigmoid_backward, sigmoid_forward,
    sqrt_backward, sqrt_forward, sub_backward, sub_forward, tanh_backward, tanh_forward, where_backward,
    where_forward,
)
from .embedding import embedding_backward, embedding_forward
from .graph import capture, records
from .fused_linear import fused_linear
from .linear import (
    linear_backward, linear_forward, linear_gelu_backward, linear_gelu_forward, mlp_backward, mlp_forward,
)
from .linear_int8 import linear_int8
from .loss import (
    cross_entropy_backward, cross_entropy_forward, linear_cross_entropy_backward, linear_cross_entropy_forward,
)
from .matmul import matmul_backward, matmul_forward
from .movement import (
    cast_backward, cast_forward, concatenate_backward, concatenate_forward, getitem_backward, getitem_forward,
    permute_backward, permute_forward, reshape_backward, reshape_forward, split_backward, split_forward,
)
from .norm import (
    add_layer_norm_backward, add_layer_norm_forward, layer_norm_backward, layer_norm_forward, rms_norm_backward,
    rms_norm_forward,
)
from .optim import adamw_step, grad_norm, sgd_step
from .random import first_bits
from .reduce import max_backward, max_forward, mean_backward, mean_forward, sum_backward, sum_forward, unbroadcast
from .recurrent import lstm_backward, lstm_forward, rnn_backward, rnn_forward
from .rope import rope_backward, rope_forward
from .runtime import copy, device, empty, from_numpy, own, to_numpy
from .sample import sample
from .softmax import log_softmax_backward, log_softmax_forward, softmax_backward, softmax_forward

name = "triton"     # the backend's
