"""The family's layers as published, in float64 NumPy, one token and one head at a time."""

import numpy as np

from tests.ops.test_family import MEMBERS

WIDTH, HEADS, K, V = 24, 2, 8, 16


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def silu(a):
    return a * sigmoid(a)


def softplus(a):
    return np.log1p(np.exp(a))


def unit(a):
    return a / np.sqrt((a * a).sum(-1, keepdims=True) + 1e-6)


def rms_norm(a, weight):
    return a / np.sqrt((a * a).mean(-1, keepdims=True) + 1e-5) * weight


class Layer:
    """One layer's parameters and input, and the parts that layers share."""

    def __init__(self, params, x):
        self.p = {
            name: {k: np.asarray(v, np.float64) for k, v in leaf.items()}
            if hasattr(leaf, "items")
            else np.asarray(leaf, np.float64)
            for name, leaf in params.items()
        }
        self.x = np.asarray(x, np.float64)
        self.batch, self.length, _ = x.shape

    def linear(self, name, a=None):
        p = self.p[name]
        return (self.x if a is None else a) @ p["kernel"] + p.get("bias", 0)

    def heads(self, a, count=HEADS):
        return a.reshape(self.batch, self.length, count, -1)

    def convolved(self, name, heads=HEADS):
        a = np.pad(self.linear(f"{name}_proj"), ((0, 0), (3, 0), (0, 0)))
        y = sum(self.p[f"{name}_conv"][i] * a[:, i : i + self.length] for i in range(4))
        return self.heads(silu(y + self.p.get(f"{name}_conv_bias", 0)), heads)

    def low_rank(self, name):
        return self.heads(self.linear(f"{name}_up", self.linear(f"{name}_down")))

    def projected(self, name):
        return self.heads(self.linear(f"{name}_proj"))

    def recurrence(self, member, scale, **tokens):
        """Run the member's own transition over every head."""
        output = np.zeros((self.batch, self.length, HEADS, V))
        for i, h in np.ndindex(self.batch, HEADS):
            state = np.zeros((K, V))
            for t in range(self.length):
                token = {name: array[i, t, h] for name, array in tokens.items()}
                state = MEMBERS[member][1](state, token)
                output[i, t, h] = state.T @ token["q"] * scale
        return output

    def out(self, y):
        return self.linear("o_proj", y.reshape(self.batch, self.length, HEADS * V))

    def qkv(self):
        return {
            "q": unit(self.convolved("q")),
            "k": unit(self.convolved("k")),
            "v": self.convolved("v"),
        }

    def scalar_decay(self):
        step = softplus(self.linear("a_proj") + self.p["dt_bias"])
        return self.heads(step), self.heads(-np.exp(self.p["A_log"]) * step)

    def channel_decay(self):
        step = softplus(self.low_rank("f") + self.p["dt_bias"].reshape(HEADS, K))
        return -np.exp(self.p["A_log"])[:, None] * step


def linear_attention(layer):
    q, k = (np.where(a > 0, a + 1, np.exp(a)) for a in map(layer.projected, "qk"))
    o = layer.recurrence("linear_attention", K**-0.5, q=q, k=k, v=layer.projected("v"))
    return layer.out(rms_norm(o, layer.p["o_norm"]))


def rotated(a):
    rates = 10000.0 ** (-np.arange(0, K, 2) / K)
    angle = np.arange(a.shape[1])[:, None, None] * rates
    left, right = a[..., : K // 2], a[..., K // 2 :]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def retnet(layer):
    q, k, v = rotated(layer.projected("q")), rotated(layer.projected("k")), layer.projected("v")
    gamma = np.broadcast_to(1 - 2.0 ** (-5 - np.arange(HEADS))[:, None], (*v.shape[:3], 1))
    o = layer.recurrence("retnet", K**-0.5, q=q, k=k, v=v, gamma=gamma)
    return layer.out(rms_norm(o, layer.p["o_norm"]) * silu(layer.projected("g")))


def gla(layer):
    q, k, v = map(layer.projected, "qkv")
    o = layer.recurrence("gla", K**-0.5, q=q, k=k, v=v, g=np.log(sigmoid(layer.low_rank("f"))) / 16)
    return layer.out(rms_norm(o, layer.p["o_norm"]) * silu(layer.projected("g")))


def mamba2(layer):
    """B and C are shared by all heads, as published; D skips; the norm spans all heads."""
    q, k = (np.repeat(layer.convolved(name, 1), HEADS, axis=2) for name in "qk")
    v = layer.convolved("v")
    step = layer.heads(softplus(layer.linear("a_proj") + layer.p["dt_bias"]))
    a = np.broadcast_to(-np.exp(layer.p["A_log"])[:, None], step.shape)
    o = layer.recurrence("mamba2", 1.0, q=q, k=k, v=v, step=step, a=a)
    o = (o + layer.p["D"][:, None] * v) * silu(layer.projected("g"))
    return layer.out(rms_norm(o.reshape(layer.batch, layer.length, -1), layer.p["o_norm"]))


def deltanet(layer):
    beta = layer.heads(sigmoid(layer.linear("b_proj")))
    o = layer.recurrence("deltanet", K**-0.5, **layer.qkv(), beta=beta)
    return layer.out(rms_norm(o, layer.p["o_norm"]))


def gdn(layer):
    beta = layer.heads(sigmoid(layer.linear("b_proj")))
    o = layer.recurrence("gdn", K**-0.5, **layer.qkv(), beta=beta, a=layer.scalar_decay()[1])
    return layer.out(rms_norm(o, layer.p["o_norm"]) * silu(layer.projected("g")))


def comba(layer):
    """The state before its decay is read; the query lacks a multiple of its key."""
    p, x = layer.p, layer.qkv()
    beta = layer.heads(sigmoid(layer.linear("b_proj")))
    x["q"] = x["q"] - p["q_correction"][:, None] * x["k"]
    share = np.broadcast_to(sigmoid(p["b_share"])[:, None], beta.shape)
    a = layer.scalar_decay()[1]
    o = layer.recurrence("comba", K**-0.5, **x, beta=beta, a=a, share=share)
    return layer.out(rms_norm(o, p["o_norm"]) * sigmoid(layer.projected("g")))


def kda(layer):
    beta = layer.heads(sigmoid(layer.linear("b_proj")))
    o = layer.recurrence("kda", K**-0.5, **layer.qkv(), beta=beta, g=layer.channel_decay())
    return layer.out(rms_norm(o, layer.p["o_norm"]) * sigmoid(layer.low_rank("g")))


def gdn2(layer):
    b, w = (layer.heads(sigmoid(layer.linear(name))) for name in ("b_proj", "w_proj"))
    o = layer.recurrence("gdn2", K**-0.5, **layer.qkv(), b=b, w=w, g=layer.channel_decay())
    return layer.out(rms_norm(o, layer.p["o_norm"]) * silu(layer.low_rank("g")))


PUBLISHED = {
    f.__name__: f for f in (linear_attention, retnet, gla, mamba2, deltanet, gdn, comba, kda, gdn2)
}
