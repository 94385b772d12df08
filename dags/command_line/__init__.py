"""What does a person run by hand? `mtf`, the command line, as thin as a DAG."""
