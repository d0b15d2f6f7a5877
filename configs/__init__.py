"""Configs: each file has `get_config()`, and says what to expect of it."""
