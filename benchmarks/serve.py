"""Times a server's clients against `generate_many`, on the same requests."""
