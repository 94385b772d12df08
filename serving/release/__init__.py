"""What leaves the house: the Bento, and the client."""
