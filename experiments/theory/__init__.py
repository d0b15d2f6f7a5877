"""The theory of CARVE as experiments: each states a claim, tests it, and says where it fails."""
