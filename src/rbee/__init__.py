"""rbee: one daemon that turns a machine into a supervised pool of LLM workers."""

__version__ = "0.1.0"
