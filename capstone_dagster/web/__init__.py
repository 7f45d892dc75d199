"""The pages of `capstone browse`: events in a browser, read through the consumers' views."""
