"""From queue to run: what a message means, which upload it names, and the one run that it requests."""
