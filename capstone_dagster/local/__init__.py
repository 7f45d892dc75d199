"""What a developer's machine needs in place of the cloud: local stack, demo clip and demo detector."""
