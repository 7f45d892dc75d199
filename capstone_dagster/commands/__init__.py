"""The commands of `capstone`: thin; each asks the rooms and shows what they answer."""
