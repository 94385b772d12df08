"""When does each step run? Airflow DAGs joined by assets, and the command line beside them."""
