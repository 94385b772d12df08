"""Which policy serves? It follows the champion and runs the policy in its compiled form."""
