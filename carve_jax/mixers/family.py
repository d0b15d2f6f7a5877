"""The entries of the gated delta family: the rule, with gates and a layer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from carve_jax.mixers.entry import BY_HEADS, SHARED, Config, Entry, key_heads, recurrent_fields
from carve_jax.mixers.gated_delta import GatedDeltaMixer
from carve_jax.mixers.gates import GateSpec
from carve_jax.mixers.layer import LayerSpec
from carve_jax.sharding import Axes

PARAMETERS: Mapping[str, Axes] = {
    **SHARED,
    "q_proj": ("embed", "key_heads"),
    "k_proj": ("embed", "key_heads"),
    "v_proj": BY_HEADS,
    "q_conv": (None, "key_heads"),
    "k_conv": (None, "key_heads"),
    "v_conv": (None, "heads"),
    "q_conv_bias": ("key_heads",),
    "k_conv_bias": ("key_heads",),
    "v_conv_bias": ("heads",),
    "a_proj": ("embed", "gate_heads"),
    "f_down": (None, None),  # a bottleneck is not worth cutting
    "f_up": (None, "gate_heads"),
    "A_log": ("gate_heads",),
    "dt_bias": ("gate_heads",),
    "b_proj": ("embed", "gate_heads"),
    "b_share": ("gate_heads",),
    "q_correction": ("key_heads",),
    "w_proj": BY_HEADS,
    "content_down": ("heads", None, None),
    "content_up": ("heads", None, None),
    "g_down": (None, None),
    "g_up": (None, "heads"),
    "g_proj": BY_HEADS,
}

GDN2_GATES, GDN2_LAYER = GateSpec(), LayerSpec()


@dataclasses.dataclass(frozen=True)
class GatedDelta(Entry):
    """A mixer of the family.

    Attributes:
      source: where it was published.
      gates: the gates it is published with.
      layer: what surrounds the rule there.
    """

    source: str
    gates: GateSpec = GDN2_GATES
    layer: LayerSpec = GDN2_LAYER

    parameters = PARAMETERS
    undecayed = Entry.undecayed | {"A_log", "b_share", "q_correction"}

    def __call__(self, **fields: Any) -> GatedDeltaMixer:
        """The preset, with any field of its mixer, GateSpec and LayerSpec changed by name."""
        specs: dict[str, Any] = {"gates": self.gates, "layer": self.layer}
        for key, default in specs.items():
            spec = fields.pop(key, default)
            known = {field.name for field in dataclasses.fields(spec)}
            changes = {field: fields.pop(field) for field in known & fields.keys()}
            specs[key] = dataclasses.replace(spec, **changes)
        return GatedDeltaMixer(**specs, **fields)

    def gates_of(self, config: Config) -> GateSpec:
        """The gates in a model of this configuration."""
        return config.gates.applied(self.gates)

    def layer_of(self, config: Config) -> LayerSpec:
        """What surrounds the rule in a model of this configuration."""
        return config.layer.applied(self.layer)

    def of_model(self, config: Config) -> GatedDeltaMixer:
        """See `Entry`."""
        return GatedDeltaMixer(
            gates=self.gates_of(config),
            layer=self.layer_of(config),
            conv_width=config.conv_width,
            **recurrent_fields(config),
        )

    def check(self, config: Config) -> None:
        """Refuse gates that mean nothing together, and keys that RoPE cannot turn."""
        self.gates_of(config)
        if self.layer_of(config).rope and config.key_dim % 2:
            raise ValueError(f"key_dim={config.key_dim}; RoPE needs an even number.")

    def forward_flops(self, config: Config, context: int) -> dict[str, float]:
        """Decay, read, write and output: 7·K·V per head; 5·K·V without erase."""
        del context
        each = 5 if self.gates_of(config).erase == "none" else 7
        return {"rule": each * self.state_size(config)}

    def cut_by_tensor(self, config: Config) -> dict[str, int]:
        """Value heads, and those of the gates where these follow the keys."""
        cut = {"num_heads": config.num_heads}
        if self.layer_of(config).gates_per == "key":
            cut["num_key_heads"] = key_heads(config)
        return cut

    def may_be_replicated(self, config: Config) -> dict[str, int]:
        """Heads of queries and keys, and of gates."""
        by_key = self.layer_of(config).gates_per == "key"
        gate_heads = key_heads(config) if by_key else config.num_heads
        return {"key_heads": key_heads(config), "gate_heads": gate_heads}

    def content_lag(self, config: Config) -> int:
        """See `Entry`."""
        return self.gates_of(config).content_lag

    def reads_layer_below(self, config: Config) -> bool:
        """See `Entry`."""
        return self.gates_of(config).reads_layer_below

    def segment_alignment(self, config: Config) -> int:
        """Gate chunks start with their document."""
        gates = self.gates_of(config)
        return gates.gate_chunk if gates.content else 1
