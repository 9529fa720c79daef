"""The search for the modes of a posterior: its log density in batches, and what evaluates it."""
