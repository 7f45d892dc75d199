"""The declarative list: everything that is observed, once, from which all else is rendered."""
