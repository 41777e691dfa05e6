"""How records become batches: text, pictures, buckets and the stream; no source is known here."""
