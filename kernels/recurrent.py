"""Recurrent layers over a whole sequence, the plain RNN and the LSTM: a launch for each step.

    rnn:   a_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh,   h_t = tanh(a_t)          (twin: tinyllm/ops/recurrent.py)
    lstm:  a_t in four parts;   i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o),   g = tanh(a_g)
           c_t = f c_{t-1} + i g,   h_t = o tanh(c_t)

    back:  dh_t = dout_t + W_hh^T da_{t+1}
    rnn:   da_t = dh_t (1 - h_t^2)
    lstm:  dc_t = dh_t o (1 - tanh(c_t)^2) + dc_{t+1} f_{t+1}
           da_i = dc_t g i (1 - i),   da_f = dc_t c_{t-1} f (1 - f),   da_g = dc_t i (1 - g^2),
           da_o = dh_t tanh(c_t) o (1 - o)

W_ih x_t is one product over all steps (product.py) before the walk, and so are the gradients of x and of the weights
after it. What must wait for the step before, W_hh h_{t-1} or W_hh^T da_{t+1}, is a kernel here: a program multiplies a
tile of the batch and of the features, and does the arithmetic of the step while the tile is in registers. In an LSTM
its features' four gates come together in one program, so c never leaves it.

*Why a launch for each step?* Every feature of h_t needs all of h_{t-1}, so all programs have to wait for all others,
and Triton has no such wait but the end of a launch. A program that walked alone would need all of W_hh, 512 KB for an
LSTM of 256 features in bfloat16: too much for a multiprocessor's own memory, so it would fetch it again at every step,
and a batch of 32 texts would keep one or two multiprocessors busy. A launch spreads that work over many, and can be
recorded in a CUDA graph.

    h_ptr, before_ptr        (B, H), one step's state and the one before it: rows of an array (T + 1, B, H)
    gates_ptr                (B, 4H): holds W_ih x_t + b_ih + b_hh, and then i, f, g, o for the backward pass; rnn keeps
                             its sum in h_ptr
    c_ptr, c_before_ptr      (B, H) float32, whatever the rest is: a sum over all steps
    weight_ptr               W_hh: (H, H), or (4H, H) with the rows of i, f, g, o
    dout_ptr, dh_last_ptr    (B, H) or None: what comes from above, and at the last step from behind the sequence
    da_after_ptr, da_ptr     (B, H) or (B, 4H): da_{t+1}, None at the last step, and da_t
    dc_ptr                   (B, H) float32: dc_{t+1} f_{t+1}, overwritten by dc_t f_t
    grid                     (ceil(B / BLOCK_B), ceil(H / BLOCK_H))
"""

import torch
import triton
import triton.language as tl

from . import configs, runtime
from .elementwise import add, sigmoid, tanh
from .map import map_
from .product import product, weight_gradient
from .reduce import sum_rows


@triton.jit
def tile_of_step(n_batch, n_hidden, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """This program's texts and features, and where both exist."""
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    columns = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    return rows, columns, (rows < n_batch)[:, None] & (columns < n_hidden)[None, :]


@triton.jit
def load(ptr, places, exists):
    return tl.load(ptr + places, mask=exists, other=0.0).to(tl.float32)


@triton.jit
def load_states(ptr, rows, ks, n_batch, n_hidden):
    """Some features of some texts of h_{t-1}: (len(rows), len(ks))"""
    return tl.load(ptr + rows[:, None] * n_hidden + ks[None, :],
                   mask=(rows < n_batch)[:, None] & (ks < n_hidden)[None, :], other=0.0)


@triton.jit
def load_weights(ptr, gate, columns, ks, n_hidden):
    """A part of W_hh^T, from features `ks` of h_{t-1} to features `columns` of a gate: (len(ks), len(columns))"""
    return tl.load(ptr + (gate * n_hidden + columns)[None, :] * n_hidden + ks[:, None],
                   mask=(ks < n_hidden)[:, None] & (columns < n_hidden)[None, :], other=0.0)


@triton.jit
def gradient_of_state(dout_ptr, dh_last_ptr, da_after_ptr, weight_ptr, n_batch, n_hidden, n_inner,
                      BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr):
    """dh_t = dout_t + W_hh^T da_{t+1}, a tile: da_after_ptr (B, n_inner), weight_ptr (n_inner, H)"""
    rows, columns, exists = tile_of_step(n_batch, n_hidden, BLOCK_B, BLOCK_H)
    dh = tl.zeros((BLOCK_B, BLOCK_H), dtype=tl.float32)
    if da_after_ptr is not None:
        for first in range(0, n_inner, BLOCK_K):
            ks = first + tl.arange(0, BLOCK_K)
            da = load_states(da_after_ptr, rows, ks, n_batch, n_inner)
            weight = tl.load(weight_ptr + ks[:, None] * n_hidden + columns[None, :],
                             mask=(ks < n_inner)[:, None] & (columns < n_hidden)[None, :], other=0.0)
            dh = tl.dot(da, weight, dh, input_precision="ieee")
    places = rows[:, None] * n_hidden + columns[None, :]
    if dh_last_ptr is not None:
        dh += load(dh_last_ptr, places, exists)
    if dout_ptr is not None:
        dh += load(dout_ptr, places, exists)
    return dh


@triton.jit(do_not_specialize=["n_batch"])
def rnn_step_kernel(before_ptr, h_ptr, weight_ptr, n_batch, n_hidden,
                    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr):
    rows, columns, exists = tile_of_step(n_batch, n_hidden, BLOCK_B, BLOCK_H)
    places = rows[:, None] * n_hidden + columns[None, :]
    a = load(h_ptr, places, exists)
    for first in range(0, n_hidden, BLOCK_K):
        ks = first + tl.arange(0, BLOCK_K)
        h = load_states(before_ptr, rows, ks, n_batch, n_hidden)
        a = tl.dot(h, load_weights(weight_ptr, 0, columns, ks, n_hidden), a, input_precision="ieee")
    tl.store(h_ptr + places, tanh(a), mask=exists)


@triton.jit(do_not_specialize=["n_batch"])
def rnn_step_backward_kernel(dout_ptr, dh_last_ptr, da_after_ptr, weight_ptr, h_ptr, da_ptr, n_batch, n_hidden,
                             BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr):
    rows, columns, exists = tile_of_step(n_batch, n_hidden, BLOCK_B, BLOCK_H)
    places = rows[:, None] * n_hidden + columns[None, :]
    dh = gradient_of_state(dout_ptr, dh_last_ptr, da_after_ptr, weight_ptr, n_batch, n_hidden, n_hidden,
                           BLOCK_B, BLOCK_H, BLOCK_K)
    h = load(h_ptr, places, exists)
    tl.store(da_ptr + places, dh * (1.0 - h * h), mask=exists)


@triton.jit(do_not_specialize=["n_batch"])
def lstm_step_kernel(gates_ptr, before_ptr, c_before_ptr, h_ptr, c_ptr, weight_ptr, n_batch, n_hidden,
                     BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr):
    rows, columns, exists = tile_of_step(n_batch, n_hidden, BLOCK_B, BLOCK_H)
    a_i = tl.zeros((BLOCK_B, BLOCK_H), dtype=tl.float32)
    a_f = tl.zeros((BLOCK_B, BLOCK_H), dtype=tl.float32)
    a_g = tl.zeros((BLOCK_B, BLOCK_H), dtype=tl.float32)
    a_o = tl.zeros((BLOCK_B, BLOCK_H), dtype=tl.float32)
    for first in range(0, n_hidden, BLOCK_K):
        ks = first + tl.arange(0, BLOCK_K)
        h = load_states(before_ptr, rows, ks, n_batch, n_hidden)
        a_i = tl.dot(h, load_weights(weight_ptr, 0, columns, ks, n_hidden), a_i, input_precision="ieee")
        a_f = tl.dot(h, load_weights(weight_ptr, 1, columns, ks, n_hidden), a_f, input_precision="ieee")
        a_g = tl.dot(h, load_weights(weight_ptr, 2, columns, ks, n_hidden), a_g, input_precision="ieee")
        a_o = tl.dot(h, load_weights(weight_ptr, 3, columns, ks, n_hidden), a_o, input_precision="ieee")

    places = rows[:, None] * n_hidden + columns[None, :]
    in_gates = rows[:, None] * 4 * n_hidden + columns[None, :]
    i = sigmoid(a_i + load(gates_ptr, in_gates, exists))
    f = sigmoid(a_f + load(gates_ptr + n_hidden, in_gates, exists))
    g = tanh(a_g + load(gates_ptr + 2 * n_hidden, in_gates, exists))
    o = sigmoid(a_o + load(gates_ptr + 3 * n_hidden, in_gates, exists))
    c = f * load(c_before_ptr, places, exists) + i * g
    tl.store(c_ptr + places, c, mask=exists)
    tl.store(h_ptr + places, o * tanh(c), mask=exists)
    tl.store(gates_ptr + in_gates, i, mask=exists)
    tl.store(gates_ptr + n_hidden + in_gates, f, mask=exists)
    tl.store(gates_ptr + 2 * n_hidden + in_gates, g, mask=exists)
    tl.store(gates_ptr + 3 * n_hidden + in_gates, o, mask=exists)


@triton.jit(do_not_specialize=["n_batch"])
def lstm_step_backward_kernel(dout_ptr, dh_last_ptr, da_after_ptr, weight_ptr, gates_ptr, c_before_ptr, c_ptr, dc_ptr,
                              da_ptr, n_batch, n_hidden,
                              BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr):
    rows, columns, exists = tile_of_step(n_batch, n_hidden, BLOCK_B, BLOCK_H)
    places = rows[:, None] * n_hidden + columns[None, :]
    in_gates = rows[:, None] * 4 * n_hidden + columns[None, :]
    dh = gradient_of_state(dout_ptr, dh_last_ptr, da_after_ptr, weight_ptr, n_batch, n_hidden, 4 * n_hidden,
                           BLOCK_B, BLOCK_H, BLOCK_K)
    i = load(gates_ptr, in_gates, exists)
    f = load(gates_ptr + n_hidden, in_gates, exists)
    g = load(gates_ptr + 2 * n_hidden, in_gates, exists)
    o = load(gates_ptr + 3 * n_hidden, in_gates, exists)
    c_before, tanh_c = load(c_before_ptr, places, exists), tanh(load(c_ptr, places, exists))
    dc = load(dc_ptr, places, exists) + dh * o * (1.0 - tanh_c * tanh_c)
    tl.store(dc_ptr + places, dc * f, mask=exists)
    tl.store(da_ptr + in_gates, dc * g * i * (1.0 - i), mask=exists)
    tl.store(da_ptr + n_hidden + in_gates, dc * c_before * f * (1.0 - f), mask=exists)
    tl.store(da_ptr + 2 * n_hidden + in_gates, dc * i * (1.0 - g * g), mask=exists)
    tl.store(da_ptr + 3 * n_hidden + in_gates, dh * tanh_c * o * (1.0 - o), mask=exists)


def rnn_forward(x, h0, weight_ih, weight_hh, bias_ih=None, bias_hh=None, *, needs=(True,) * 6):
    """h_t = tanh(a_t): x (B, T, C), h0 (B, H) or None, weight_ih (H, C), weight_hh (H, H), biases (H,) or None
    -> ((h (B, T, H), h_last (B, H)), saved).
    """
    x, h, weight_hh = _time_first(x), _states(h0, x, weight_hh, x.dtype), runtime.contiguous(weight_hh)
    _input_products(x, weight_ih, bias_ih, bias_hh, out=h[1:])
    grid, numbers, tiles = _launch("rnn_step", h)
    for t in range(len(x)):
        rnn_step_kernel[grid](h[t], h[t + 1], weight_hh, *numbers, **tiles)
    saved = x, h, weight_ih, weight_hh, _wanted(needs, h0, bias_ih, bias_hh)
    return (h[1:].transpose(0, 1), runtime.copy(h[-1])), saved


def rnn_backward(dout, dh_last, saved):
    """dout (B, T, H), dh_last (B, H), either may be None -> (dx, dh0, dweight_ih, dweight_hh, dbias_ih, dbias_hh)."""
    x, h, weight_ih, weight_hh, needs = saved
    dout, dh_last = None if dout is None else _time_first(dout), runtime.contiguous(dh_last)
    da = runtime.empty(h[1:].shape, h.dtype)
    grid, numbers, tiles = _launch("rnn_step_backward", h)
    for t in reversed(range(len(x))):
        after = (None, da[t + 1]) if t + 1 < len(x) else (dh_last, None)
        rnn_step_backward_kernel[grid](None if dout is None else dout[t], *after, weight_hh, h[t + 1], da[t], *numbers,
                                       **tiles)
    dx, *dweights = _gradients(da, x, h, weight_ih, needs)
    return dx, _into_first(da, weight_hh) if needs[1] else None, *dweights


def lstm_forward(x, h0, c0, weight_ih, weight_hh, bias_ih=None, bias_hh=None, *, needs=(True,) * 7):
    """x (B, T, C), h0 and c0 (B, H) or None, weight_ih (4H, C), weight_hh (4H, H), biases (4H,) or None, rows in the
    order i, f, g, o -> ((h (B, T, H), h_last (B, H), c_last (B, H)), saved).
    """
    x, h, c = _time_first(x), _states(h0, x, weight_hh, x.dtype), _states(c0, x, weight_hh, torch.float32)
    gates, weight_hh = runtime.empty((*x.shape[:2], weight_hh.shape[0]), x.dtype), runtime.contiguous(weight_hh)
    _input_products(x, weight_ih, bias_ih, bias_hh, out=gates)
    grid, numbers, tiles = _launch("lstm_step", h)
    for t in range(len(x)):
        lstm_step_kernel[grid](gates[t], h[t], c[t], h[t + 1], c[t + 1], weight_hh, *numbers, **tiles)
    saved = x, h, c, gates, weight_ih, weight_hh, _wanted(needs, h0, c0, bias_ih, bias_hh)
    c_last = runtime.empty(c[-1].shape, x.dtype).copy_(c[-1])
    return (h[1:].transpose(0, 1), runtime.copy(h[-1]), c_last), saved


def lstm_backward(dout, dh_last, dc_last, saved):
    """dout (B, T, H), dh_last and dc_last (B, H), each may be None -> the gradients of lstm_forward's seven arrays."""
    x, h, c, gates, weight_ih, weight_hh, needs = saved
    dout, dh_last = None if dout is None else _time_first(dout), runtime.contiguous(dh_last)
    da, dc = runtime.empty(gates.shape, gates.dtype), runtime.empty(c[-1].shape)
    dc = dc.zero_() if dc_last is None else dc.copy_(dc_last)
    grid, numbers, tiles = _launch("lstm_step_backward", h)
    for t in reversed(range(len(x))):
        after = (None, da[t + 1]) if t + 1 < len(x) else (dh_last, None)
        lstm_step_backward_kernel[grid](None if dout is None else dout[t], *after, weight_hh, gates[t], c[t], c[t + 1],
                                        dc, da[t], *numbers, **tiles)
    dx, *dweights = _gradients(da, x, h, weight_ih, needs)
    return dx, _into_first(da, weight_hh) if needs[1] else None, dc if needs[2] else None, *dweights


def _launch(kernel, h):
    """(grid, (B, H), tiles) of a step's launch: h (T + 1, B, H)"""
    _, n_batch, n_hidden = h.shape
    tiles = configs.lookup(kernel, h.dtype, n_hidden)
    grid = (triton.cdiv(n_batch, tiles["BLOCK_B"]), triton.cdiv(n_hidden, tiles["BLOCK_H"]))
    return grid, (n_batch, n_hidden), tiles


def _time_first(x):
    """(B, T, C) -> (T, B, C), row-major. What another recurrent layer returned lies so already: no copy."""
    return runtime.contiguous(x.transpose(0, 1))


def _states(first, x, weight_hh, dtype):
    """Room for the states after 0, 1, ..., T steps: x (B, T, C) -> (T + 1, B, H); `first` or zeros in front."""
    states = runtime.empty((x.shape[1] + 1, x.shape[0], weight_hh.shape[1]), dtype)
    states[0].zero_() if first is None else states[0].copy_(first)
    return states


def _input_products(x, weight_ih, bias_ih, bias_hh, out):
    """W_ih x_t and both biases, for all steps: x (T, B, C) -> out (T, B, G)"""
    if bias_ih is not None and bias_hh is not None:
        bias = map_(add, bias_ih, bias_hh, dtype=torch.float32)
    else:
        bias = runtime.contiguous(bias_hh if bias_ih is None else bias_ih)
    if out.numel():
        product(runtime.as_rows(x), weight_ih.T, runtime.as_rows(out), bias)


def _wanted(needs, *optional):
    """`needs`, without the initial states and biases that were left out."""
    *states, bias_ih, bias_hh = (array is not None for array in optional)
    there = (True, *states, True, True, bias_ih, bias_hh)
    return tuple(a and b for a, b in zip(needs, there))


def _into_first(da, weight_hh):
    """W_hh^T da_1, the gradient of h_0: da (T, B, G) -> (B, H)"""
    dh0 = runtime.empty((da.shape[1], weight_hh.shape[1]), da.dtype)
    return product(da[0], weight_hh, dh0) if dh0.numel() else dh0


def _gradients(da, x, h, weight_ih, needs):
    """The products over all steps: da (T, B, G), x (T, B, C), h (T + 1, B, H) -> dx (B, T, C), dW_ih, dW_hh, db, db."""
    da, x_rows, dx = runtime.as_rows(da), runtime.as_rows(x), None
    need_ih, need_hh, *need_biases = needs[-4:]
    if needs[0]:
        dx = runtime.empty(x.shape, x.dtype)
        if dx.numel():
            product(da, weight_ih, runtime.as_rows(dx))
        dx = dx.transpose(0, 1)
    dweight_ih = weight_gradient(da, x_rows) if need_ih else None
    dweight_hh = weight_gradient(da, runtime.as_rows(h[:-1])) if need_hh else None
    dbias = sum_rows(da) if any(need_biases) else None
    return dx, dweight_ih, dweight_hh, *(dbias if need else None for need in need_biases)
