"""The TPU API of a rehearsal without machines: a test says what becomes of a queued resource."""
from downscale.launch.rehearsal.machines.queued import Queued


class FakeTpu(Queued):
    """The API, and what a test asks it."""

    def made(self):
        return [call for call in self.calls if call[0] == 'POST']

    def deleted(self):
        return [call for call in self.calls if call[0] == 'DELETE']
