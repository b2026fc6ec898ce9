"""Send a prompt to an Ollama model and keep the conversation as plain files.

This file stays empty of imports: every start of the command passes through it.
"""

__version__ = "2.0.0"
