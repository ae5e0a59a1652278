"""Shipped attacks by compromised participants, one file each."""
