"""What was decided and what was felt: decisions, feedback, sessions."""
