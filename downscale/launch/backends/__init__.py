"""Where jobs run: this machine, GKE, TPU VMs."""
