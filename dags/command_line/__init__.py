"""`mtf`: the command line, as thin as a DAG."""
