"""When each step runs: Airflow DAGs joined by assets, and the command line beside them."""
