"""Velocity fields: solutions of the transport equation, as pure functions of tensors."""
