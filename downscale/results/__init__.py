"""What a row means: formats of results, the writer and the reader of each."""
