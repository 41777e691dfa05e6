"""Four fake CPU devices for every test; the flags must be set before jax is first imported."""
import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '') +
                           ' --xla_force_host_platform_device_count=4').strip()


def pytest_configure(config):
    """Register the one marker, so that a misspelt one is an error under --strict-markers."""
    config.addinivalue_line('markers', 'slow: takes over 20 s on two cores; CI runs it as well')
