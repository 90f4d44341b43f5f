"""Named objects below one URI: the protocol, local directories, and what fsspec reaches."""
