"""The commands of `capstone`. They are thin: each calls the other packages and shows the result."""
