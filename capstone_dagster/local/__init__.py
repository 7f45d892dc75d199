"""What a developer's machine needs in place of the cloud: the local stack, the demo clip and the demo detector."""
