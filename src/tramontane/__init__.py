"""Background jobs that survive crashes and event streams that resume exactly, for the Mistral API."""

__version__ = "0.1.0"
