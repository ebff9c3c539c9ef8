"""Measurement without training: controls and the report."""
