"""What does the service know of a user? The online state, behind its time budget."""
