"""How a policy ranks: the BentoML service, exploration arms and the decision log."""
