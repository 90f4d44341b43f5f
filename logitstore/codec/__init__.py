"""Label rows to packed columns and back: values, ids, codebooks, the loops of decoding."""
