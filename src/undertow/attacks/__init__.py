"""Shipped attacks, one file each."""
