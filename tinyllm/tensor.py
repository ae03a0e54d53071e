"""Tensor: an array that remembers how it was made, so that it can tell what each of its ancestors did to it.

Every operation on tensors appends a Node to the tape: its name, its inputs, and what its backward pass will need.
loss.backward() walks the tape from the end and applies the chain rule node by node.

    a = Tensor(3.0, requires_grad=True)
    b = a * a                   # a diamond: a is used twice
    c = b + a
    c.backward()                # dc/da = 2a + 1
    a.grad                      # 7.0

*Why a particular order?* A node may pass its gradient on only when all of it has arrived. b's gradient is complete
once c has been processed, a's only after c and b both have. Nodes are numbered as they are made, and a node can
only use what was there before it; so "newest first" is always a right order. A heap yields it without recursion
(graphs are tens of thousands of nodes deep) and without sorting. *Why sums?* a reaches c along two paths, and the
effects of all paths add up.
"""
import copy
import functools
import heapq
import inspect
import itertools
import math

import numpy as np

from . import backend, modes, shapes

_numbers = itertools.count()


class Node:
    """One operation on the tape: how its outputs came about. It keeps its inputs alive, and so the whole graph."""

    __slots__ = ("number", "name", "inputs", "saved", "versions", "out_versions", "n_outputs", "douts")

    def __init__(self, name, inputs, saved, n_outputs):
        self.number = next(_numbers)
        self.name = name
        self.inputs = inputs            # Tensors, arrays, or None, as they were passed
        self.saved = saved              # for X_backward; opaque here
        self.versions = tuple(t._version[0] if isinstance(t, Tensor) else 0 for t in inputs)
        self.out_versions = ()          # the outputs' counts themselves: `saved` may hold what they count for
        self.n_outputs = n_outputs
        self.douts = None               # the gradients that arrived, kept by backward(retain_graph=True) for draw()

    def free(self):
        self.inputs = self.saved = self.douts = None


def apply(name, *inputs, **options):
    """Run operation `name` forward and put it on the tape; the one door to the operations of a backend.

    inputs: Tensors, plain arrays (such as token ids) or None. Returns one Tensor, or a tuple where the operation has
    several outputs. Raises ValueError where shapes, dtypes or backends do not fit.
    """
    tensors = [t for t in inputs if isinstance(t, Tensor)]
    if not tensors:
        raise TypeError(f"{name}: none of its inputs is a Tensor; wrap an array with tinyllm.Tensor(array)")
    ops = backend.of(tensors[0]._data)
    if any(backend.of(t._data) is not ops for t in tensors):
        places = ", ".join(backend.of(t._data).name for t in tensors)
        raise ValueError(f"{name}: its tensors live on different backends ({places}); move one with .to(...)")
    arrays = [t._data if isinstance(t, Tensor) else     # a plain array, such as token ids, is copied: its owner may
              ops.from_numpy(t) if isinstance(t, np.ndarray) else t for t in inputs]    # change it before backward()
    shapes.check(name, arrays, options)
    out, saved = backend.operation(ops, name + "_forward")(*arrays, **options)
    outs = out if isinstance(out, tuple) else (out,)
    node = None
    if modes.here.recording and any(t.requires_grad for t in tensors):
        node = Node(name, inputs, saved, len(outs))
    results = tuple(Tensor._of(o, node, i) for i, o in enumerate(outs))
    if node is not None:
        node.out_versions = tuple(t._version for t in results)
    if modes.here.anomaly:
        modes.refuse_nan(name, "output", outs, [t.shape for t in tensors])
    return results if isinstance(out, tuple) else results[0]


class Tensor:
    """An array with a gradient.

    data: a number, a (nested) list of numbers, or an array; it is copied. Numbers and lists become float32, arrays keep
    their dtype. requires_grad: whether backward() shall compute `grad` = d loss / d this; floating point only.
    """

    __slots__ = ("_data", "grad", "requires_grad", "node", "index", "grad_buffer", "_version", "__weakref__")
    __array_ufunc__ = None              # np_array * tensor asks the Tensor, instead of looping over its elements
    moves = 0                           # how often any tensor was given another array: what is recorded may be stale

    def __init__(self, data, requires_grad=False):
        if isinstance(data, Tensor):
            data = data._data
        numbers = shapes.numbers(data)
        if backend.is_array(data):
            data = backend.of(data).copy(data)
        else:
            data = numbers if isinstance(data, np.generic) else numbers.astype(np.float32)
        if requires_grad and not shapes.is_float(data):
            raise ValueError(f"Tensor: only floating-point tensors can require a gradient, this one is {data.dtype}; "
                             "convert it first, for example with array.astype(np.float32)")
        self._set(data, None, 0)
        self.requires_grad = requires_grad

    @classmethod
    def _of(cls, array, node=None, index=0):
        """Wrap an array without copying it: the `index`-th output of `node`."""
        tensor = cls.__new__(cls)
        tensor._set(np.asarray(array) if isinstance(array, np.generic) else array, node, index)
        tensor.requires_grad = node is not None
        return tensor

    def _set(self, data, node, index):
        self._data, self.node, self.index = data, node, index
        self.grad = None                # an array like data, once backward() has reached this leaf
        self.grad_buffer = None         # where an optimizer wants it (optim.collect_gradients)
        self._version = [0]             # counts in-place changes; backward() refuses stale data

    @property
    def data(self):
        """The array. Assigning another one is allowed, and makes graphs that used the old one refuse backward()."""
        return self._data

    @data.setter
    def data(self, array):
        if array is not self._data:                 # detached ones keep the old array, and its count
            self._data, self._version = array, self._version.copy()
            Tensor.moves += 1
        self._version[0] += 1

    @property
    def shape(self):
        return tuple(self._data.shape)

    @property
    def dtype(self):
        return self._data.dtype

    @property
    def ndim(self):
        return self._data.ndim

    def backward(self, gradient=None, retain_graph=False):
        """Add d self / d leaf to the `grad` of every leaf that requires one.

        gradient: d loss / d self, an array of this shape; may be left out when self is a single number (then it is 1).
        The tape is freed on the way. retain_graph=True keeps it, for a second backward() or for draw().
        """
        seed = self._seed(gradient)
        if self.node is None:
            _accumulate(self, seed)
            return
        arrived = {self.node: {self.index: seed}}       # node -> output number -> its gradient so far
        waiting = [(-self.node.number, self.node)]      # a heap: the newest node is on top
        while waiting:
            _, node = heapq.heappop(waiting)
            douts = [arrived[node].get(i) for i in range(node.n_outputs)]
            del arrived[node]
            grads = _run_backward(node, douts)
            for tensor, grad in zip(node.inputs, grads):
                if grad is None or not isinstance(tensor, Tensor) or not tensor.requires_grad:
                    continue
                if grad is tensor.grad_buffer:      # the operation has added it to what was there
                    continue
                ops = backend.of(tensor._data)
                if grad.shape != tensor._data.shape:
                    grad = ops.unbroadcast(grad, tensor.shape)
                if tensor.node is None:             # a leaf's may be float32 though the leaf has 16 bits
                    fresh = not any(grad is d for d in douts) and sum(grad is g for g in grads) == 1
                    _accumulate(tensor, grad, fresh)
                    continue
                if grad.dtype != tensor.dtype:
                    grad = ops.cast_forward(grad, dtype=tensor.dtype)[0]
                if tensor.node not in arrived:
                    arrived[tensor.node] = {}
                    heapq.heappush(waiting, (-tensor.node.number, tensor.node))
                slots, i = arrived[tensor.node], tensor.index
                slots[i] = ops.add_forward(slots[i], grad)[0] if i in slots else grad
            if retain_graph:
                node.douts = douts
            else:
                node.free()

    def _seed(self, gradient):
        if not self.requires_grad:
            raise ValueError(f"backward() on a tensor of shape {self.shape} that requires no gradient: none of the "
                             "tensors it was computed from has requires_grad=True, or no_grad() was on")
        if gradient is None:
            if math.prod(self.shape) != 1:
                raise ValueError(f"backward() starts at a single number, this tensor has shape {self.shape}; call "
                                 ".sum() or .mean() first, or pass the gradient of the loss with respect to it")
            gradient = np.ones(self.shape)
        if isinstance(gradient, Tensor):
            gradient = gradient._data
        if not backend.is_array(gradient) or isinstance(gradient, np.ndarray):
            gradient = backend.of(self._data).from_numpy(np.asarray(gradient), dtype=self.dtype)
        if tuple(gradient.shape) != self.shape:
            raise ValueError(f"backward(): the gradient has shape {tuple(gradient.shape)}, the tensor {self.shape}")
        return gradient

    def detach(self):
        """The same array, cut off from the tape; changed in place through one, it counts as changed for both."""
        tensor = Tensor._of(self._data)
        tensor._version = self._version
        return tensor

    def numpy(self):
        """The values as a NumPy array (shared memory where that is possible)."""
        return backend.of(self._data).to_numpy(self._data)

    def item(self):
        """The value of a one-element tensor as a Python number."""
        return self.numpy().item()

    def to(self, name, dtype=None):
        """A new leaf with the same values on backend "numpy" or "triton", as `dtype` if given; no gradient crosses."""
        moved = Tensor._of(backend.get(name).from_numpy(self.numpy(), dtype=dtype))
        moved.requires_grad = self.requires_grad
        return moved

    def __repr__(self):
        grad = f", from {self.node.name}" if self.node else ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({np.array2string(self.numpy(), precision=4, threshold=20)}, {self.dtype}{grad})"

    def __len__(self):
        if not self.shape:
            raise TypeError("len() of a tensor with no dimensions")
        return self.shape[0]

    def __iter__(self): return (self[i] for i in range(len(self)))
    def __float__(self): return float(self.item())
    def __bool__(self): return bool(self.item())        # `if loss:`; item() refuses more than one element
    def __add__(self, other): return apply("add", *pair(self, other))
    def __radd__(self, other): return apply("add", *pair(other, self))
    def __sub__(self, other): return apply("sub", *pair(self, other))
    def __rsub__(self, other): return apply("sub", *pair(other, self))
    def __mul__(self, other): return apply("mul", *pair(self, other))
    def __rmul__(self, other): return apply("mul", *pair(other, self))
    def __truediv__(self, other): return apply("div", *pair(self, other))
    def __rtruediv__(self, other): return apply("div", *pair(other, self))
    def __pow__(self, other): return _with_needs("pow", *pair(self, other))
    def __rpow__(self, other): return _with_needs("pow", *pair(other, self))
    def __matmul__(self, other): return _with_needs("matmul", *pair(self, other))
    def __rmatmul__(self, other): return _with_needs("matmul", *pair(other, self))
    def __neg__(self): return apply("neg", self)
    def exp(self): return apply("exp", self)
    def log(self): return apply("log", self)
    def sqrt(self): return apply("sqrt", self)
    def tanh(self): return apply("tanh", self)
    def sigmoid(self): return apply("sigmoid", self)
    def relu(self): return apply("relu", self)
    def erf(self): return apply("erf", self)
    def sum(self, axis=None, keepdims=False): return apply("sum", self, axis=_axes(axis), keepdims=keepdims)
    def mean(self, axis=None, keepdims=False): return apply("mean", self, axis=_axes(axis), keepdims=keepdims)
    def max(self, axis=None, keepdims=False): return apply("max", self, axis=_axes(axis), keepdims=keepdims)
    def reshape(self, *shape): return apply("reshape", self, shape=_flat(shape))
    def permute(self, *axes): return apply("permute", self, axes=_flat(axes))
    def __getitem__(self, index): return apply("getitem", self, index=_own(index))

    def transpose(self, axis1, axis2):
        """Swap two axes."""
        i, j = (shapes.axis("transpose", self, axis) for axis in (axis1, axis2))
        return self.permute([{i: j, j: i}.get(axis, axis) for axis in range(self.ndim)])

    def cast(self, dtype):
        """The same numbers as another type; ValueError if a gradient would have to pass through integers."""
        out = apply("cast", self, dtype=dtype)
        if out.requires_grad and not shapes.is_float(out._data):
            raise ValueError(f"cast: no gradient passes through {out.dtype}; call .detach() on the tensor first")
        return out

    @property
    def T(self):
        """All axes reversed: a matrix transposed."""
        return self.permute(range(self.ndim)[::-1])


def pair(a, b):
    """Both sides of a + b as Tensors: numbers and lists take the other side's dtype, and integers a floating one."""
    like = a if isinstance(a, Tensor) else b
    a, b = (x if isinstance(x, Tensor) else _constant(x, like) for x in (a, b))
    if a.dtype != b.dtype and backend.of(a._data) is backend.of(b._data):
        floats = [shapes.is_float(x._data) for x in (a, b)]
        a = a.cast(b.dtype) if floats == [False, True] else a
        b = b.cast(a.dtype) if floats == [True, False] else b
    return a, b


def _constant(value, like):
    """A number, list or array as a Tensor on the backend of another, and in its dtype unless it has one of its own."""
    array = shapes.numbers(value)
    if not isinstance(array, np.ndarray):
        return Tensor(array)
    dtype = None if array is value or not shapes.is_float(like._data) else like.dtype
    return Tensor._of(backend.of(like._data).from_numpy(array, dtype=dtype))


def _own(index):
    """An index whose arrays nobody else can change before backward()."""
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(copy.deepcopy(part) if isinstance(part, (np.ndarray, list)) else part for part in parts)


def wants(*tensors):
    """For each input, whether its gradient will be asked for: operations skip the work for those that are not."""
    return tuple(modes.here.recording and isinstance(t, Tensor) and t.requires_grad for t in tensors)


def _with_needs(name, a, b):
    return apply(name, a, b, needs=wants(a, b))


def _flat(numbers):
    """reshape(2, 3) and reshape((2, 3)) mean the same."""
    return tuple(numbers[0]) if len(numbers) == 1 and np.ndim(numbers[0]) else tuple(numbers)


def _axes(axis):
    """A list of axes means the same as a tuple."""
    return tuple(axis) if isinstance(axis, list) else axis


def _run_backward(node, douts):
    """Call the node's X_backward, after making sure that what it saved still holds."""
    if node.inputs is None:
        raise RuntimeError(f"backward() reached {node.name} a second time: the first call freed the tape as it went; "
                           "call it with retain_graph=True if you need another, or compute the loss again")
    for position, (tensor, version) in enumerate(zip(node.inputs, node.versions)):
        if isinstance(tensor, Tensor) and tensor._version[0] != version:
            raise RuntimeError(f"backward(): input {position} of {node.name}, of shape {tensor.shape}, was changed in "
                               "place after the forward pass (by an optimizer, load_state_dict or .data =); compute "
                               "the loss again before backward()")
    if any(version[0] for version in node.out_versions):
        raise RuntimeError(f"backward(): the output of {node.name} was changed in place after the forward pass, and "
                           "its gradient may be computed from it; change a copy, or compute the loss again")
    ops = backend.of(next(d for d in douts if d is not None))
    backward = backend.operation(ops, node.name + "_backward")
    into = tuple(map(_buffer, node.inputs))
    options = {"into": into} if any(b is not None for b in into) and _takes_into(backward) else {}
    grads = backward(*douts, saved=node.saved, **options)
    if modes.here.anomaly:
        modes.refuse_nan(node.name, "gradient", grads, [t.shape for t in node.inputs if isinstance(t, Tensor)])
    return grads


def _buffer(x):
    """The array to which gradients of x are to be added in place: its `grad`, where an optimizer has provided it."""
    wanted = isinstance(x, Tensor) and x.requires_grad and x.grad is not None and x.grad is x.grad_buffer
    return x.grad if wanted else None


@functools.cache
def _takes_into(backward):
    """Whether a backward function can add gradients to arrays that it is given."""
    return "into" in inspect.signature(backward).parameters


def _accumulate(leaf, grad, fresh=False):
    """Gradients add up, within one backward() and over several. A leaf owns its array: what is not fresh is copied."""
    ops = backend.of(leaf._data)
    if leaf.grad is None:
        leaf.grad = ops.own(grad) if fresh else ops.copy(grad)
    else:
        leaf.grad = ops.own(ops.add_forward(leaf.grad, grad)[0])
