"""What runs say of themselves: their failures, their steps, whose work they double."""
