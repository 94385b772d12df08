"""How do landed logs become tables? The daily dbt run, and the reward's weights, which read a mart."""
