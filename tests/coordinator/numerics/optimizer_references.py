"""The optimizers once more, in NumPy and float64, from their papers and torch's documentation: one step each.

Each takes a parameter, its gradient, what it kept of the steps before (empty at first), and the options; it returns the
parameter. ``s["t"]`` counts the steps from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Kept = dict[str, Any]
Options = Mapping[str, Any]
Reference = Callable[[Array, Array, Kept, Options], Array]


def _signed(g: Array, o: Options) -> Array:
    return -g if o["maximize"] else g


def _decayed(x: Array, g: Array, o: Options) -> Array:
    return _signed(g, o) + o["weight_decay"] * x


def _decoupled(x: Array, g: Array, o: Options) -> tuple[Array, Array]:
    return x - o["lr"] * o["weight_decay"] * x, _signed(g, o)


def sgd(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """Sutskever et al., ICML 2013, in torch's form: the rate is outside of the momentum."""
    g = _decayed(x, g, o)
    if o["momentum"]:
        s["b"] = o["momentum"] * s["b"] + (1 - o["dampening"]) * g if "b" in s else g
        g = g + o["momentum"] * s["b"] if o["nesterov"] else s["b"]
    return x - o["lr"] * g


def adam(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """Kingma and Ba, arXiv:1412.6980; amsgrad: Reddi et al., arXiv:1904.09237."""
    return _adam(x, _decayed(x, g, o), s, o)


def adamw(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """Loshchilov and Hutter, arXiv:1711.05101."""
    return _adam(*_decoupled(x, g, o), s, o)


def _moments(g: Array, s: Kept, o: Options) -> tuple[Array, Array]:
    b1, b2 = o["betas"]
    s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g * g
    return s["m"], s["v"]


def _adam(x: Array, g: Array, s: Kept, o: Options) -> Array:
    (b1, b2), t = o["betas"], s["t"]
    m, v = _moments(g, s, o)
    if o["amsgrad"]:
        v = s["max"] = np.maximum(s.get("max", 0.0), v)
    return x - o["lr"] * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + o["eps"])


def adadelta(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """Zeiler, arXiv:1212.5701."""
    g, rho, eps = _decayed(x, g, o), o["rho"], o["eps"]
    s["v"] = rho * s.get("v", 0.0) + (1 - rho) * g * g
    delta = np.sqrt(s.get("u", 0.0) + eps) / np.sqrt(s["v"] + eps) * g
    s["u"] = rho * s.get("u", 0.0) + (1 - rho) * delta * delta
    return x - o["lr"] * delta


def adagrad(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """Duchi et al., JMLR 12 (2011)."""
    g = _decayed(x, g, o)
    s["sum"] = s.get("sum", o["initial_accumulator_value"]) + g * g
    return x - o["lr"] / (1 + (s["t"] - 1) * o["lr_decay"]) * g / (np.sqrt(s["sum"]) + o["eps"])


def adamax(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """Kingma and Ba, arXiv:1412.6980, section 7.1."""
    g, (b1, b2) = _decayed(x, g, o), o["betas"]
    s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
    s["u"] = np.maximum(b2 * s.get("u", 0.0), np.abs(g) + o["eps"])
    return x - o["lr"] / (1 - b1 ** s["t"]) * s["m"] / s["u"]


def asgd(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """Polyak and Juditsky, SIAM J. Control Optim. 30 (1992): its average is kept, the last iterate is returned."""
    g, eta = _decayed(x, g, o), s.get("eta", o["lr"])
    s["eta"] = o["lr"] / (1 + o["lambd"] * o["lr"] * s["t"]) ** o["alpha"]
    return x * (1 - o["lambd"] * eta) - eta * g


def nadam(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """Dozat, ICLR 2016 workshop."""
    (b1, b2), t = o["betas"], s["t"]
    x, g = _decoupled(x, g, o) if o["decoupled_weight_decay"] else (x, _decayed(x, g, o))
    mu, following = (b1 * (1 - 0.5 * 0.96 ** (k * o["momentum_decay"])) for k in (t, t + 1))
    s["product"] = s.get("product", 1.0) * mu
    m, v = _moments(g, s, o)
    ahead = following * m / (1 - s["product"] * following) + (1 - mu) * g / (1 - s["product"])
    return x - o["lr"] * ahead / (np.sqrt(v / (1 - b2**t)) + o["eps"])


def radam(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """Liu et al., arXiv:1908.03265."""
    (b1, b2), t = o["betas"], s["t"]
    x, g = _decoupled(x, g, o) if o["decoupled_weight_decay"] else (x, _decayed(x, g, o))
    m, v = _moments(g, s, o)
    m = m / (1 - b1**t)
    longest = 2 / (1 - b2) - 1
    length = longest - 2 * t * b2**t / (1 - b2**t)
    if length <= 5:
        return x - o["lr"] * m
    rectified = np.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
    return x - o["lr"] * m * rectified * np.sqrt(1 - b2**t) / (np.sqrt(v) + o["eps"])


def rmsprop(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """Hinton's lecture 6e; centered: Graves, arXiv:1308.0850."""
    g, alpha = _decayed(x, g, o), o["alpha"]
    v = s["v"] = alpha * s.get("v", 0.0) + (1 - alpha) * g * g
    if o["centered"]:
        s["mean"] = alpha * s.get("mean", 0.0) + (1 - alpha) * g
        v = v - s["mean"] ** 2
    step = g / (np.sqrt(v) + o["eps"])
    if o["momentum"]:
        step = s["b"] = o["momentum"] * s.get("b", 0.0) + step
    return x - o["lr"] * step


def rprop(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """Riedmiller and Braun, ICNN 1993: where the sign turns, no step is made."""
    g = _signed(g, o)
    (minus, plus), (least, most) = o["etas"], o["step_sizes"]
    sign = np.sign(g * s.get("before", 0.0))
    size = s.get("size", np.full_like(x, o["lr"])) * np.where(sign > 0, plus, np.where(sign < 0, minus, 1.0))
    s["size"] = np.clip(size, least, most)
    s["before"] = np.where(sign < 0, 0.0, g)
    return x - np.sign(s["before"]) * s["size"]


def adafactor(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """Shazeer and Stern, arXiv:1804.04235; its first epsilon, where absent, is the float type's own."""
    g, t = _signed(g, o), s["t"]
    first, second = o["eps"]
    first = s["float_eps"] if first is None else first
    share = t ** o["beta2_decay"]
    rate = max(second, float(np.sqrt(np.mean(x * x)))) * min(o["lr"], 1 / np.sqrt(t))
    x = x * (1 - o["lr"] * o["weight_decay"])
    if x.ndim > 1:
        s["r"] = (1 - share) * s.get("r", 0.0) + share * np.mean(g * g, axis=-1, keepdims=True)
        s["c"] = (1 - share) * s.get("c", 0.0) + share * np.mean(g * g, axis=-2, keepdims=True)
        v = s["r"] @ s["c"] / np.maximum(np.mean(s["r"], axis=-2, keepdims=True), first)
    else:
        v = s["v"] = (1 - share) * s.get("v", 0.0) + share * g * g
    update = g / np.sqrt(np.maximum(v, first * first))
    return x - rate * update / max(1.0, float(np.sqrt(np.mean(update * update))) / o["d"])


def muon(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """Jordan et al., 2024: momentum, orthogonalised by a Newton-Schulz iteration (which torch computes in bfloat16)."""
    s["b"] = o["momentum"] * s.get("b", 0.0) + (1 - o["momentum"]) * g
    u = (1 - o["momentum"]) * g + o["momentum"] * s["b"] if o["nesterov"] else s["b"]
    is_high, (a, b, c) = u.shape[0] > u.shape[1], o["ns_coefficients"]
    u = u.T if is_high else u
    u = u / max(float(np.linalg.norm(u)), o["eps"])
    for _ in range(o["ns_steps"]):
        gram = u @ u.T
        u = a * u + (b * gram + c * gram @ gram) @ u
    rows, columns = x.shape
    matched = o["adjust_lr_fn"] == "match_rms_adamw"
    scale = 0.2 * np.sqrt(max(rows, columns)) if matched else np.sqrt(max(1, rows / columns))
    return x * (1 - o["lr"] * o["weight_decay"]) - o["lr"] * scale * (u.T if is_high else u)


def _fed(x: Array, s: Kept, g: Array, o: Options) -> Array:
    """Reddi et al., arXiv:2003.00295, algorithm 2; its direction is the negative gradient, which changes no square."""
    s["m"] = o["beta1"] * s.get("m", 0.0) - (1 - o["beta1"]) * g
    return x + o["lr"] * s["m"] / (np.sqrt(s["v"]) + o["tau"])


def fedadagrad(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """FedAdagrad."""
    s["v"] = s.get("v", o["tau"] ** 2) + g**2
    return _fed(x, s, g, o)


def fedadam(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """FedAdam."""
    s["v"] = o["beta2"] * s.get("v", o["tau"] ** 2) + (1 - o["beta2"]) * g**2
    return _fed(x, s, g, o)


def fedyogi(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """FedYogi."""
    v = s.get("v", o["tau"] ** 2)
    s["v"] = v - (1 - o["beta2"]) * g**2 * np.sign(v - g**2)
    return _fed(x, s, g, o)


def delayed_nesterov(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """Liu et al., arXiv:2401.09135, algorithm 3, with the momentum of a window as the sum over that window."""
    n, c, beta = o["delay"], o["activation"], o["momentum"]
    window = s.setdefault("window", [])
    window.append(g)
    if len(window) < n:
        return x - o["lr"] * (c * beta * s.get("m", 0.0) + g / n)
    s["m"] = beta * s.get("m", 0.0) + sum(window) / n
    window.clear()
    return x - o["lr"] * ((1 - (n - 1) * c) * beta * s["m"] + g / n)


def heloco(x: Array, g: Array, s: Kept, o: Options) -> Array:
    """arXiv:2606.00271, after updates were turned: x0 is stepped, and x0 - lr momentum m published."""
    x0 = s.get("x0", x)
    s["m"] = o["momentum"] * s.get("m", 0.0) + (1 - o["momentum"]) * g
    s["x0"] = x0 - o["lr"] * (g + o["momentum"] * s["m"])
    return s["x0"] - o["lr"] * o["momentum"] * s["m"] if o["look_ahead"] else s["x0"]


REFERENCES: dict[str, Reference] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "adadelta": adadelta,
    "adafactor": adafactor,
    "adagrad": adagrad,
    "adamax": adamax,
    "asgd": asgd,
    "muon": muon,
    "nadam": nadam,
    "radam": radam,
    "rmsprop": rmsprop,
    "rprop": rprop,
    "fedadagrad": fedadagrad,
    "fedadam": fedadam,
    "fedyogi": fedyogi,
    "delayed_nesterov": delayed_nesterov,
    "heloco": heloco,
}
