"""A card as the tasks find it."""

H100 = "NVIDIA H100 80GB HBM3"
FACTS = {
    "commit": "0123456789abcdef",
    "uncommitted_changes": False,
    "devices": [H100],
    "versions": {"jax": "0.11.2"},
    "device_bytes": None,
}
