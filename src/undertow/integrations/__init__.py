"""Undertow's measurements and scan inside other people's tools: Trainer, inspect_ai, data sets."""
