"""Rotary position embedding: turn each pair of features by an angle that grows with the position."""
from . import memory


def rope_forward(x, cos, sin, position=None, *, interleaved=False):
    """Rotate the feature pairs (a, b) of each head: out = (a cos - b sin, a sin + b cos).

    x (B, T, H, D), cos and sin (T, D/2): the angle of position t and pair i is t * base^(-2i/D). The dot product of two
    rotated vectors depends only on the distance of their positions. Pair i is features (i, i + D/2), as Llama and
    GPT-NeoX have it, or (2i, 2i + 1) with interleaved=True, as in the paper: Su et al. 2021, "RoFormer", eq. 34.
    position (1,) integer, or None: then cos and sin are longer, and hold the first token's angles in this row.
    """
    if position is not None:
        rows = slice(int(position[0]), int(position[0]) + x.shape[1])
        cos, sin = cos[rows], sin[rows]
    out = memory.empty(x.shape, x.dtype)
    (a, b), (out_a, out_b) = _pairs(x, interleaved), _pairs(out, interleaved)
    cos, sin = cos[:, None], sin[:, None]           # (T, 1, D/2): the same angle for every head
    out_a[...] = a * cos - b * sin
    out_b[...] = a * sin + b * cos
    return out, (cos[:, 0], sin[:, 0], interleaved)


def rope_backward(dout, saved):
    """A rotation's gradient turns back by the same angle."""
    cos, sin, interleaved = saved
    return rope_forward(dout, cos, -sin, interleaved=interleaved)[0], None, None, None


def _pairs(x, interleaved):
    half = x.shape[-1] // 2
    return (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
