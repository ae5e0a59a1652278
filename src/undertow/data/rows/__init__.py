"""Rows of instruction data in whatever form people keep them: from a file's bytes to samples and an account of every field."""
