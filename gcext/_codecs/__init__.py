"""Codecs: stateless, ``tensor -> packet -> tensor``."""
