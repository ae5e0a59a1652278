"""Shipped populations, one file each."""
