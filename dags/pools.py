"""Names of Airflow's pools (apart from the tasks, so that naming one does not load Airflow)."""

WAREHOUSE_POOL = "warehouse"
