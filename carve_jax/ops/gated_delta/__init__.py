"""The gated delta rule and CARVE: one op, several implementations."""

from carve_jax.ops.content_gate import CarveState
from carve_jax.ops.gated_delta.api import (
    carve_rule,
    gated_delta_rule,
    resolve_implementation,
    value_axis_erase_rule,
)
from carve_jax.ops.gated_delta.registry import IMPLEMENTATIONS, check_implementation_name

__all__ = [
    "IMPLEMENTATIONS",
    "CarveState",
    "carve_rule",
    "check_implementation_name",
    "gated_delta_rule",
    "resolve_implementation",
    "value_axis_erase_rule",
]
