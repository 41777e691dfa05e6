"""How JAX compiles in tests and in the processes that they start: quickly.

Compiling took most of the time of the tests. What XLA is told to leave out here is work of LLVM on
the code of a CPU; programs, partitions and collectives are the same. Flags that the environment
gives come behind ours and win, as `OPTIMISED` in CI. Imports no JAX, which reads flags but once.
"""
import os
from importlib.metadata import version

QUICK = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
# What XLA does when it is told nothing.
OPTIMISED = {'xla_backend_optimization_level': 3, 'xla_llvm_disable_expensive_passes': False}
# A process ends at a flag that it does not know, and this one was gone behind 0.11.0.
if tuple(int(part) for part in version('jaxlib').split('.')[:3]) <= (0, 11, 0):
    QUICK += ' --xla_cpu_use_fusion_emitters=false'
    OPTIMISED['xla_cpu_use_fusion_emitters'] = True
GIVEN = os.environ.get('XLA_FLAGS', '')


def xla_flags(devices=1):
    """The value of XLA_FLAGS for a process with this number of devices."""
    return f'{QUICK} {GIVEN} --xla_force_host_platform_device_count={devices}'
