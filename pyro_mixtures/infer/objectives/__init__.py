"""Objectives that drop into Pyro's ``SVI``: a bound, with options of its gradient."""
