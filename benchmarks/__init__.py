"""Speed against the peers."""
