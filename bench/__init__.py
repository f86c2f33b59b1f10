"""Measure latency and quality against a baseline, so that others can check it."""
