{# Before dbt builds on Spark: the tables are what lies in their folders (MTF_SPARK_TABLES of MTF_SPARK_FOLDER),
   whatever a catalogue said, and dbt's cache is told so. DuckDB's file has its own catalogue. #}
{% macro name_tables() %}
    {%- if execute and target.type == 'spark' -%}
        {%- do ask_for_settings() -%}
        {%- set lying = env_var('MTF_SPARK_TABLES', '').split() -%}
        {%- for node in graph.nodes.values() if node.resource_type == 'model' and node.config.materialized != 'view' -%}
            {%- set table = api.Relation.create(schema=node.schema, identifier=node.name, type='table') -%}
            {%- do run_query('drop table if exists ' ~ table) -%}
            {%- if node.name in lying -%}
                {%- do run_query(
                    'create table ' ~ table ~ ' using parquet location \'' ~ env_var('MTF_SPARK_FOLDER') ~ '/' ~ node.name
                    ~ '\''
                ) -%}
                {%- do run_query('msck repair table ' ~ table) -%}
                {%- do adapter.cache_added(table) -%}
            {%- else -%}
                {%- do adapter.cache_dropped(table) -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{% endmacro %}

{# What every day's files rest on: a Thrift server has it in its own configuration, or makes other values without a word. #}
{% macro ask_for_settings() %}
    {%- set wanted = {
        'spark.sql.session.timeZone': 'UTC',
        'spark.sql.parquet.mergeSchema': 'true',
        'spark.sql.parquet.outputTimestampType': 'TIMESTAMP_MICROS',
    } -%}
    {%- for name, value in wanted.items() -%}
        {%- set found = run_query('set ' ~ name).rows[0][1] -%}
        {%- if found != value -%}
            {%- do exceptions.raise_compiler_error(
                name ~ ' of Spark is ' ~ found ~ '; start the Thrift server with --conf ' ~ name ~ '=' ~ value
            ) -%}
        {%- endif -%}
    {%- endfor -%}
{% endmacro %}
