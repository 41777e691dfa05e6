"""The connector: from features of the vision tower to the width of the decoder."""
import flax.linen as nn
import jax
import jax.numpy as jnp

from downscale.model.init import weight
from downscale.sharding import Rules


class Connector(nn.Module):
    """Features [B, P, W] -> decoder width [B, P, D]: linear, exact GELU, linear."""
    width: int
    rules: Rules = Rules()
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x_BPW: jax.Array) -> jax.Array:
        W = x_BPW.shape[-1]
        D = self.width
        first_WD = weight(self, 'first_WD', (W, D), self.dtype)
        first_bias_D = weight(self, 'first_bias_D', (D,), self.dtype)
        second_DD = weight(self, 'second_DD', (D, D), self.dtype)
        second_bias_D = weight(self, 'second_bias_D', (D,), self.dtype)
        # Exact here and approximate in the tower, as the published weights were trained with.
        x_BPD = nn.gelu(jnp.einsum('BPW,WD->BPD', x_BPW, first_WD) + first_bias_D,
                        approximate=False)
        return x_BPD @ second_DD + second_bias_D
