"""What an operator sees: failures by class, each with its remedy."""
