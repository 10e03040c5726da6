"""Tests of the expert store."""
