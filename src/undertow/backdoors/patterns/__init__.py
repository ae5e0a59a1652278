"""Shipped backdoors of images and words, one file each."""
