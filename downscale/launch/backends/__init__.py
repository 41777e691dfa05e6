"""Where jobs run: this machine, GKE, Compute Engine, TPU VMs."""
