"""The key/value cache: plain arrays, stacked over layers, that the blocks scan in and out."""
import jax.numpy as jnp


def empty_cache(cfg, rows, length, dtype='float32'):
    """(k, v), each zeros [N, B, S, K, E] for `rows` B and room for `length` S tokens a row."""
    shape = (cfg.N, rows, length, cfg.K, cfg.E)
    return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)
