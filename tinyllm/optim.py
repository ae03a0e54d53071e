"""Optimizers: what to do with a gradient.

The formulas run in ops/optim.py; here they get their memory and their numbers.

All parameters of a model are moved into one flat buffer, and each tensor becomes a view of its stretch. A step is then
one loop over one array, and so is the gradient norm. Matrices come first: only they are decayed. A model that computes
in 16 bits gets two flat buffers: float32 "master weights", which learn, and their rounded copy, which computes.
"""
import math

import numpy as np

from . import backend, shapes
from .tensor import Tensor


class Optimizer:
    """What all optimizers share: the flat buffers, the learning rate, clipping, and saving.

    params: Tensors. The subclasses name their `buffers` (flat arrays like the parameters, zero at first) and define
    `update`. Make the optimizer after model.to(...).
    """

    buffers = ()

    def __init__(self, params, lr, weight_decay=0.0):
        learned = self._checked(params)
        self.params = [p for p in learned if p.ndim >= 2] + [p for p in learned if p.ndim < 2]
        self.lr, self.weight_decay, self.steps = lr, weight_decay, 0
        self.ops = backend.of(self.params[0].data)
        ends = np.cumsum([math.prod(p.shape) for p in self.params]).tolist()
        self.stretches = [slice(a, b) for a, b in zip([0, *ends], ends)]
        n_matrices = sum(p.ndim >= 2 for p in self.params)
        self.decayed = slice(0, ends[n_matrices - 1] if n_matrices else 0)
        self.plain = slice(self.decayed.stop, ends[-1])
        dtype = self.params[0].dtype
        learning = np.float32 if dtype.itemsize == 2 else dtype
        self.flat, self.grad = self._zeros(learning), self._zeros(learning)
        self.working = self._zeros(dtype) if dtype.itemsize == 2 else None
        computing = self.flat if self.working is None else self.working
        self.views, self.grads = ([flat[s].reshape(p.shape) for p, s in zip(self.params, self.stretches)]
                                  for flat in (computing, self.grad))
        self.versions = [None] * len(self.params)
        self.state = {name: self._zeros(learning) for name in self.buffers}
        self.hyper = self.ops.from_numpy(np.array([lr, 0.0]))           # what changes from step to step (ops/optim.py)
        self._gather_parameters()

    def _checked(self, params):
        """The parameters that learn, each once; TypeError or ValueError if they cannot go into one buffer."""
        name = type(self).__name__
        if not hasattr(params, "__iter__") or isinstance(params, (Tensor, str)):
            raise TypeError(f"{name}: give it a list of Tensors, such as model.parameters(), "
                            f"not a {type(params).__name__}")
        params = list(params)
        for i, p in enumerate(params):
            if not isinstance(p, Tensor):
                raise TypeError(f"{name}: parameter {i} is no Tensor but a {type(p).__name__}; "
                                "give it a list of Tensors, such as model.parameters()")
        learned = [p for p in dict.fromkeys(params) if p.requires_grad]
        kinds = sorted({_kind(p.data) for p in learned})
        if not kinds:
            raise ValueError(f"{name}: there is no parameter that requires a gradient, among {len(params)} given")
        if len(kinds) > 1:
            raise ValueError(f"{name}: all parameters must be of one dtype, on one backend, not {' and '.join(kinds)}; "
                             "move the whole model with model.to(...)")
        return learned

    def _zeros(self, dtype):
        array = self.ops.empty((self.stretches[-1].stop,), dtype)
        array[...] = 0
        return array

    def _gather_parameters(self):
        """Make every parameter a view of its stretch; one whose data somebody else has changed is copied in again."""
        for i, (p, view, stretch) in enumerate(zip(self.params, self.views, self.stretches)):
            if p._version[0] != self.versions[i]:
                if p.data is not view:
                    if _kind(p.data) != _kind(view) or p.shape != tuple(view.shape):
                        raise ValueError(f"{type(self).__name__}: a parameter of shape {tuple(view.shape)}, "
                                         f"{_kind(view)}, has become {p.shape}, {_kind(p.data)}; make the optimizer "
                                         "after model.to(...)")
                    view[...] = p.data
                    p.data = view
                if self.working is not None:
                    self.flat[stretch] = view.reshape(-1)
                self.versions[i] = p._version[0]

    def zero_grad(self):
        """Forget all gradients."""
        for p in self.params:
            p.grad = p.grad_buffer = None

    def collect_gradients(self):
        """In place of zero_grad(): let backward() add the gradients up in the flat buffer, where step() wants them.

        On the NumPy backend it would win nothing, as a product there cannot add to what is in an array already.
        """
        if not self.ops.records:
            return self.zero_grad()
        self.grad[...] = 0
        for p, grad in zip(self.params, self.grads):
            p.grad = p.grad_buffer = grad if p.requires_grad else None

    def step(self, lr=None, max_norm=0.0):
        """Change the parameters by their gradients; return the gradients' norm, before clipping, as a 0-d array.

        lr: this step's learning rate (default: the last one). max_norm: if the norm of all gradients together is
        larger, all are scaled down to it (0: no clipping; Pascanu et al. 2013). A parameter without a gradient counts
        as having a zero one. If the norm is not finite, the step counts, but no parameter changes.
        """
        self.advance(lr)
        norm = self.apply(max_norm)
        self.announce()
        return norm

    def advance(self, lr=None):
        """What comes before apply(), and does not belong into a recorded step: count, write the new numbers where the
        rest reads them, and take parameters in again that somebody else has changed.
        """
        self.lr = self.lr if lr is None else lr
        self.steps += 1
        self.hyper[0], self.hyper[1] = self.lr, self.steps
        self._gather_parameters()

    def apply(self, max_norm=0.0):
        """The part of step() that works on arrays only, so that it can be recorded."""
        self._gather_parameters()
        for p, grad in zip(self.params, self.grads):
            if p.grad is not grad:
                grad[...] = 0 if p.grad is None else p.grad
        norm = self.ops.grad_norm(self.grad)
        for part, weight_decay in ((self.decayed, self.weight_decay), (self.plain, 0.0)):
            if part.start < part.stop:
                working = None if self.working is None else self.working[part]
                state = {name: buffer[part] for name, buffer in self.state.items()}
                self.update(self.flat[part], self.grad[part], state, norm, working,
                            weight_decay=weight_decay, max_norm=max_norm)
        return norm

    def announce(self):
        """What comes after apply(): tell the tape that the parameters have changed."""
        for i, p in enumerate(self.params):
            p.data = p.data
            self.versions[i] = p._version[0]

    def state_dict(self):
        """What resuming needs: the flat buffers as NumPy arrays, and the numbers."""
        arrays = {name: np.array(self.ops.to_numpy(buffer)) for name, buffer in self._saved().items()}
        return arrays, {"optimizer": type(self).__name__, "steps": self.steps, "lr": self.lr,
                        "shapes": [list(p.shape) for p in self.params]}

    def load_state_dict(self, arrays, numbers):
        """Continue from a state_dict(); ValueError, and nothing is loaded, if it is another optimizer's or model's."""
        own = self.state_dict()[1]
        for key in ("optimizer", "shapes"):
            if numbers.get(key) != own[key]:
                raise ValueError(f"{type(self).__name__}.load_state_dict: the state is that of another {key} "
                                 f"({numbers.get(key)}, not {own[key]}); "
                                 "resume with the settings that it was saved with")
        buffers = self._saved()
        scalars = {key: numbers[key] for key in ("steps", "lr") if key in numbers}
        problem = shapes.mismatch({"steps": (), "lr": ()} | {k: b.shape for k, b in buffers.items()}, arrays | scalars)
        if problem:
            raise ValueError(f"{type(self).__name__}.load_state_dict: {problem}; nothing was loaded")
        self.steps, self.lr = numbers["steps"], numbers["lr"]
        self._gather_parameters()
        for name, buffer in buffers.items():
            buffer[...] = self.ops.from_numpy(arrays[name], dtype=buffer.dtype)

    def _saved(self):
        """The buffers that a checkpoint needs besides the model's parameters."""
        return self.state if self.working is None else {**self.state, "master": self.flat}


def _kind(array):
    return f"{str(array.dtype).removeprefix('torch.')} on {backend.of(array).name}"


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if you like:

        velocity = momentum * velocity + grad
        param -= lr * velocity                  (nesterov: lr * (grad + momentum * velocity))

    weight_decay adds weight_decay * param to the gradient of every matrix. Sources: Polyak 1964; Sutskever et al. 2013.
    """

    def __init__(self, params, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
        self.momentum, self.nesterov = momentum, nesterov
        self.buffers = ("velocity",) if momentum else ()
        super().__init__(params, lr, weight_decay)

    def update(self, param, grad, state, norm, working, **options):
        self.ops.sgd_step(param, grad, state.get("velocity"), self.hyper, norm, working,
                          momentum=self.momentum, nesterov=self.nesterov, **options)


class Adam(Optimizer):
    """Adam: each number moves by its gradient's running mean, divided by the running root mean square.

        m = beta1 m + (1 - beta1) grad          v = beta2 v + (1 - beta2) grad^2
        param -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    so a step is about lr, however large or small the gradient. weight_decay adds weight_decay * param to the gradient
    of every matrix (L2 regularisation). Source: Kingma & Ba 2014, algorithm 1.
    """

    buffers = ("exp_avg", "exp_avg_sq")
    decoupled = False

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        self.betas, self.eps = betas, eps
        super().__init__(params, lr, weight_decay)

    def update(self, param, grad, state, norm, working, **options):
        self.ops.adamw_step(param, grad, state["exp_avg"], state["exp_avg_sq"], self.hyper, norm, working,
                            beta1=self.betas[0], beta2=self.betas[1], eps=self.eps, decoupled=self.decoupled, **options)


class AdamW(Adam):
    """Adam with decoupled weight decay: before the step, every matrix shrinks, param -= lr * weight_decay * param.

    Kept out of the gradient, the decay is not divided by the root mean square. Vectors (biases, norms) are not decayed.
    Source: Loshchilov & Hutter 2017, algorithm 2.
    """

    decoupled = True

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(params, lr, betas, eps, weight_decay)


def clip_grad_norm_(params, max_norm):
    """Scale all gradients so that their common norm is at most max_norm; return the norm before.

    For gradients that you use yourself; an optimizer clips on the way, with step(max_norm=...).
    """
    params = [p for p in params if p.grad is not None]
    if not params:
        return 0.0
    ops = backend.of(params[0].grad)
    norm = math.sqrt(sum(float(ops.grad_norm(p.grad.reshape(-1))) ** 2 for p in params))
    if norm > max_norm:
        for p in params:            # a gradient may be of float32 where the parameter has 16 bits
            factor = ops.from_numpy(np.array(max_norm / (norm + 1e-6)), dtype=p.grad.dtype)
            p.grad = ops.mul_forward(p.grad, factor)[0]
    return norm


# Schedules: functions of the step number, counted from 0, that give the learning rate.

def constant(lr):
    """lr at every step."""
    return lambda step: lr


def _warmed_up(peak, warmup, after):
    """Rise in a straight line to the peak over `warmup` steps, the first being peak / (warmup + 1) and not 0."""
    return lambda step: peak * (step + 1) / (warmup + 1) if step < warmup else after(step)


def cosine(peak, total, warmup=0, floor=0.0):
    """Warm-up, then half a cosine wave from peak down to floor at step `total`, and floor from there on.

    floor + (peak - floor) (1 + cos(pi f)) / 2, f = (step - warmup) / (total - warmup).
    Source: Loshchilov & Hutter 2016.
    """
    def after(step):
        f = min(1.0, (step - warmup) / max(1, total - warmup))
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * f))
    return _warmed_up(peak, warmup, after)


def linear(peak, total, warmup=0, floor=0.0):
    """Warm-up, then a straight line from peak down to floor at step `total`, and floor from there on (BERT's)."""
    return _warmed_up(peak, warmup,
                      lambda step: peak + (floor - peak) * min(1.0, (step - warmup) / max(1, total - warmup)))


def inverse_sqrt(peak, warmup):
    """Warm-up, then peak * sqrt(warmup / step): the first Transformer's (Vaswani et al. 2017, section 5.3)."""
    return _warmed_up(peak, warmup, lambda step: peak * math.sqrt(max(1, warmup) / max(1, step)))
