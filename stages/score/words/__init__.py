"""Tables of words that rules look up: colours with what they look like, names that mean the same thing."""
