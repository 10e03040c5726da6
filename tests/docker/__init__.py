"""Tests of the image, the compose file and the dashboard."""
