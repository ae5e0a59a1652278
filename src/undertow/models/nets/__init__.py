"""Shipped networks, one file each."""
