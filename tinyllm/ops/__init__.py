"""The maths, in NumPy: for every operation X a pair X_forward, X_backward of pure functions on arrays.

    out, saved = X_forward(*arrays, **options)      `saved` is whatever the backward pass needs
    gradients  = X_backward(*douts, saved)          one per array, None where there is none

The simplest file, elementwise.py, shows the pattern; then matmul, linear, embedding, activation, norm, softmax,
attention, recurrent, loss. Inputs, incoming gradients and `saved` are never written. The exceptions say so, IN PLACE:
the optimizer steps, kv_append, kv_reorder and cached_attention, and the buffers for gradients, `into`.
"""
from .activation import *       # noqa: F401, F403
from .attention import *        # noqa: F401, F403
from .dropout import *          # noqa: F401, F403
from .elementwise import *      # noqa: F401, F403
from .embedding import *        # noqa: F401, F403
from .fused_linear import *     # noqa: F401, F403
from .linear import *           # noqa: F401, F403
from .linear_int8 import *      # noqa: F401, F403
from .loss import *             # noqa: F401, F403
from .matmul import *           # noqa: F401, F403
from .memory import *           # noqa: F401, F403
from .movement import *         # noqa: F401, F403
from .norm import *             # noqa: F401, F403
from .optim import *            # noqa: F401, F403
from .random import *           # noqa: F401, F403
from .recurrent import *        # noqa: F401, F403
from .reduce import *           # noqa: F401, F403
from .rope import *             # noqa: F401, F403
from .sample import *           # noqa: F401, F403
from .softmax import *          # noqa: F401, F403

name = "numpy"
