"""How does a request become an order? Arm, weights, exploration, formula."""
