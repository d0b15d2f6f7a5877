"""The gated delta rule and CARVE: one op, several implementations."""

from carve_jax.ops.content_gate import CarveState
from carve_jax.ops.gated_delta.api import (
    IMPLEMENTATIONS,
    carve_rule,
    check_implementation_name,
    gated_delta_rule,
    resolve_implementation,
    value_axis_erase_rule,
)

__all__ = [
    "IMPLEMENTATIONS",
    "CarveState",
    "carve_rule",
    "check_implementation_name",
    "gated_delta_rule",
    "resolve_implementation",
    "value_axis_erase_rule",
]
