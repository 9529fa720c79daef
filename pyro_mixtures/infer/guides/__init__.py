"""Guides that drop into Pyro's ``SVI``."""
