"""How a policy ranks: the BentoML service, exploration arms and the decision log."""

import training.contract  # noqa: F401  -- before any package that reads whether it may report to its maker
