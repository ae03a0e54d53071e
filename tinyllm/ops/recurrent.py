"""Recurrent layers over a whole sequence, the plain RNN and the LSTM, and back-propagation through time.

A recurrent layer reads a sequence from left to right and carries a state along; each step sees its input and the state
that the step before it left behind, through the same weights:

    a_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh,    h_t = tanh(a_t)                                            (rnn)

W_ih x_t needs no state, so it is one product over all steps at once; only W_hh h_{t-1} has to wait for its turn. Arrays
lie time first, (T, B, ...): then a step's rows stand side by side, and so do all steps' rows, for the products over all
of them. Two biases, as torch has them, so that weights move over; one would do.
"""
import numpy as np

from . import memory
from .linear import column_sums
from .memory import row_chunks, rows
from .threads import in_parallel


def rnn_forward(x, h0, weight_ih, weight_hh, bias_ih=None, bias_hh=None, *, needs=(True,) * 6):
    """h_t = tanh(a_t),  a_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh, for t = 1 .. T.

    x (B, T, C), h0 (B, H) or None (zeros), weight_ih (H, C), weight_hh (H, H), biases (H,) or None
    -> h (B, T, H), h_last (B, H) = h_T. Source: Elman 1990, "Finding structure in time".
    """
    x, h = _time_first(x), _states(h0, x, weight_hh)            # (T, B, C), (T + 1, B, H): h[t] is the state after t
    _input_products(x, weight_ih, out=h[1:])                    # h_t begins as W_ih x_t, becomes a_t, and then tanh
    recurrent, bias, W_T = memory.empty(h.shape[1:], h.dtype), _bias(bias_ih, bias_hh), _turned(weight_hh)
    for t in range(len(x)):
        a = h[t + 1]                                            # (B, H)
        a += np.matmul(h[t], W_T, out=recurrent)
        a += bias
        np.tanh(a, out=a)
    return (_batch_first(h[1:]), memory.copy(h[-1])), (x, h, weight_ih, weight_hh, _wanted(needs, h0, bias_ih, bias_hh))


def rnn_backward(dout, dh_last, saved):
    """Back-propagation through time: from the last step to the first, dh_t = dout_t + W_hh^T da_{t+1}.

    h_t goes two ways: out of the layer, where dout_t comes back, and into the next step, through a_{t+1} = ... + W_hh
    h_t. Then da_t = dh_t * (1 - h_t^2), the slope of tanh. Every step uses the same weights, so their gradients are
    sums over all steps, dW_hh = sum_t da_t^T h_{t-1} and dW_ih = sum_t da_t^T x_t: one product each, once all da_t are
    known.
    """
    x, h, weight_ih, weight_hh, needs = saved
    da, dh = memory.empty(h[1:].shape, h.dtype), _or_zeros(dh_last, h)
    for t in reversed(range(len(x))):
        if dout is not None:
            dh += dout[:, t]
        np.multiply(h[t + 1], h[t + 1], out=da[t])
        np.subtract(1, da[t], out=da[t])
        da[t] *= dh
        np.matmul(da[t], weight_hh, out=dh)                     # W_hh^T da_t, what goes back to h_{t-1}: (B, H)
    dx, *dweights = _gradients(da, x, h, weight_ih, needs)
    return dx, dh if needs[1] else None, *dweights


def lstm_forward(x, h0, c0, weight_ih, weight_hh, bias_ih=None, bias_hh=None, *, needs=(True,) * 7):
    """A state c that is only added to and forgotten from, so that gradients survive many steps, behind three gates:

        a_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh,  cut into four: a_i, a_f, a_g, a_o
        i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)      the input, forget and output gates, between 0 and 1
        g       = tanh(a_g)                                     what might be written
        c_t     = f * c_{t-1} + i * g
        h_t     = o * tanh(c_t)

    x (B, T, C), h0 and c0 (B, H) or None (zeros), weight_ih (4H, C), weight_hh (4H, H), biases (4H,) or None
    -> h (B, T, H), h_last (B, H), c_last (B, H). Rows of the weights in torch's order: i, f, g, o.
    Source: Hochreiter & Schmidhuber 1997; the forget gate is that of Gers, Schmidhuber & Cummins 2000.
    """
    x, h, c = _time_first(x), _states(h0, x, weight_hh), _states(c0, x, weight_hh)
    T, B, H = h[1:].shape
    gates, tanh_c = memory.empty((T, B, 4 * H), h.dtype), memory.empty((T, B, H), h.dtype)
    _input_products(x, weight_ih, out=gates)
    recurrent, bias, W_T = memory.empty((B, 4 * H), h.dtype), _bias(bias_ih, bias_hh), _turned(weight_hh)
    for t in range(T):
        a = gates[t]                                            # (B, 4H)
        a += np.matmul(h[t], W_T, out=recurrent)
        a += bias
        i, f, g, o = (a[:, k * H:(k + 1) * H] for k in range(4))
        tanh_g = np.tanh(g)
        _sigmoid_in_place(a)                                    # g's in vain: NumPy takes longer for parts of rows
        g[...] = tanh_g
        np.multiply(f, c[t], out=c[t + 1])
        c[t + 1] += i * g
        np.tanh(c[t + 1], out=tanh_c[t])
        np.multiply(o, tanh_c[t], out=h[t + 1])
    saved = x, h, c, tanh_c, gates, weight_ih, weight_hh, _wanted(needs, h0, c0, bias_ih, bias_hh)
    return (_batch_first(h[1:]), memory.copy(h[-1]), memory.copy(c[-1])), saved


def lstm_backward(dout, dh_last, dc_last, saved):
    """Back-propagation through time, for two states. From the last step to the first:

        dh_t = dout_t + W_hh^T da_{t+1}                         h_t goes out, and into the next step's four a
        dc_t = dh_t * o * (1 - tanh(c_t)^2) + dc_{t+1} * f_{t+1}        c_t goes into h_t, and into c_{t+1}
        da_i = dc_t * g * i (1 - i)                             c_t = f * c_{t-1} + i * g, and sigmoid' = s (1 - s)
        da_f = dc_t * c_{t-1} * f (1 - f)
        da_g = dc_t * i * (1 - g^2)
        da_o = dh_t * tanh(c_t) * o (1 - o)                     h_t = o * tanh(c_t)

    The second line is why an LSTM remembers: from dc_{t+1} to dc_t leads a multiplication with f alone, which the layer
    can learn to leave near 1; an RNN multiplies with W_hh^T and a slope below 1 at every step. The factors beside dh
    and dc are known before the walk begins (_slopes); the weights' gradients are products over all steps after it.
    """
    x, h, c, tanh_c, gates, weight_ih, weight_hh, needs = saved
    T, B, H = tanh_c.shape
    da, slope_c = _slopes(c, tanh_c, gates)                     # the factors, which the walk turns into gradients
    da4, f = da.reshape(T, B, 4, H), gates.reshape(T, B, 4, H)[:, :, 1]
    dh, dc = _or_zeros(dh_last, h), _or_zeros(dc_last, c)
    for t in reversed(range(T)):
        if dout is not None:
            dh += dout[:, t]
        dc += dh * slope_c[t]
        da4[t, :, :3] *= dc[:, None]
        da4[t, :, 3] *= dh
        dc *= f[t]
        np.matmul(da[t], weight_hh, out=dh)                     # (B, 4H) @ (4H, H) -> (B, H)
    dx, *dweights = _gradients(da, x, h, weight_ih, needs)
    return dx, dh if needs[1] else None, dc if needs[2] else None, *dweights


def _slopes(c, tanh_c, gates):
    """For all steps at once: d c_t / d (a_i, a_f, a_g) and d h_t / d a_o, as (T, B, 4H); d h_t / d c_t, (T, B, H)."""
    T, B, H = tanh_c.shape
    slopes, slope_c = memory.empty(gates.shape, gates.dtype), memory.empty(tanh_c.shape, gates.dtype)
    before, tanh_rows = rows(c[:-1]), rows(tanh_c)

    def work(part):
        for r in row_chunks(rows(gates), part):
            s, slope = rows(gates)[r], rows(slopes)[r]          # (n, 4H)
            i, _, g, o = (s[:, k * H:(k + 1) * H] for k in range(4))
            slope_i, slope_f, slope_g, slope_o = (slope[:, k * H:(k + 1) * H] for k in range(4))
            np.subtract(1, s, out=slope)
            slope *= s                                          # s (1 - s), for g in vain
            slope_i *= g
            slope_f *= before[r]
            slope_o *= tanh_rows[r]
            for tanh, factor, slope in ((g, i, slope_g), (tanh_rows[r], o, rows(slope_c)[r])):
                np.multiply(tanh, tanh, out=slope)
                np.subtract(1, slope, out=slope)
                slope *= factor

    in_parallel(work, T * B, 17 * T * B * H)
    return slopes, slope_c


def _sigmoid_in_place(x):
    """x = 1 / (1 + e^-x): where e^-x overflows, the result is rightly 0."""
    np.negative(x, out=x)
    with np.errstate(over="ignore"):
        np.exp(x, out=x)
    x += 1
    np.divide(1, x, out=x)


def _time_first(x):
    """(B, T, C) -> (T, B, C), row-major. What another recurrent layer returned lies so already: no copy."""
    return np.ascontiguousarray(x.transpose(1, 0, 2))


def _batch_first(x):
    """(T, B, C) -> (B, T, C), a view"""
    return x.transpose(1, 0, 2)


def _states(first, x, weight_hh):
    """Room for the states after 0, 1, ..., T steps: (T + 1, B, H); `first` or zeros in front."""
    B, T, _ = x.shape
    states = memory.empty((T + 1, B, weight_hh.shape[1]), x.dtype)
    states[0] = 0 if first is None else first
    return states


def _or_zeros(gradient, states):
    """A copy of the gradient of the last state (B, H), to be changed on the way back; None is zeros."""
    return np.zeros(states.shape[1:], states.dtype) if gradient is None else memory.copy(gradient)


def _input_products(x, weight_ih, out):
    """W_ih x_t for all steps: (T, B, C) -> out (T, B, G)"""
    np.matmul(rows(x), weight_ih.T, out=rows(out))


def _turned(weight):
    """W^T, row by row: each step's few rows multiply it, and BLAS takes a sixth less time than for W as it lies."""
    return np.ascontiguousarray(weight.T)


def _bias(*biases):
    """The sum of the biases that there are; 0 if there is none."""
    return sum(b for b in biases if b is not None)


def _wanted(needs, *optional):
    """`needs`, without the initial states and biases that were left out."""
    *states, bias_ih, bias_hh = (array is not None for array in optional)
    there = (True, *states, True, True, bias_ih, bias_hh)
    return tuple(a and b for a, b in zip(needs, there))


def _gradients(da, x, h, weight_ih, needs):
    """The products over all steps: da (T, B, G), x (T, B, C), h (T + 1, B, H) -> dx (B, T, C), dW_ih, dW_hh, db, db."""
    da, dx = rows(da), None
    need_ih, need_hh, *need_biases = needs[-4:]
    if needs[0]:
        dx = memory.empty(x.shape, x.dtype)
        np.matmul(da, weight_ih, out=rows(dx))                  # (T B, G) @ (G, C)
        dx = _batch_first(dx)
    dweight_ih = np.matmul(da.T, rows(x)) if need_ih else None
    dweight_hh = np.matmul(da.T, rows(h[:-1])) if need_hh else None
    dbias = column_sums(da) if any(need_biases) else None
    return dx, dweight_ih, dweight_hh, *(dbias if need else None for need in need_biases)
