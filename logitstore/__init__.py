"""Teacher labels on disk: top-K logits with an exact tail, in sharded Arrow files.

Imports neither torch nor ray nor vllm, so that anything can read a store.
"""

__version__ = "0.1.0"
