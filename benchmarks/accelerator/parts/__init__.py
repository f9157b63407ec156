"""The parts: a module each, with its ``PART``."""
