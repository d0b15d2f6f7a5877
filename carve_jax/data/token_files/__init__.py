"""Directories of tokens on disk: shards with headers and digests, their manifest, their reader."""
