"""What a run tells of itself: figures, curves, profiles, provenance, utilisation."""
