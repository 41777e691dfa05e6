"""Records of published sets: sources, mixtures and what is built from them."""
