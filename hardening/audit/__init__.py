"""Attacks on one's own policy: what a thief learns from hardened answers."""
