{{ config(enabled=target.type == 'spark') }}

-- What the contracts' constraints say NOT NULL of, which Spark does not hold for Parquet; DuckDB does. A row a
-- column with nulls.
-- depends_on: {{ ref('dim_users') }}, {{ ref('dim_user_versions') }}, {{ ref('fct_policy_daily') }}
-- depends_on: {{ ref('fct_session_state') }}, {{ ref('fct_transitions') }}, {{ ref('fct_user_days') }}
-- depends_on: {{ ref('fct_user_history') }}

with empty as (

    {% for node in graph.nodes.values() if execute and node.resource_type == 'model' and node.contract.enforced -%}
    {% for column in node.columns.values() if column.constraints -%}
    select
        '{{ node.name }}' as table_name,
        '{{ column.name }}' as column_name,
        count(*) as rows_without
    from {{ get_where_subquery(ref(node.name)) }}
    where {{ adapter.quote(column.name) }} is null
    union all
    {% endfor -%}
    {%- endfor -%}
    select
        '' as table_name,
        '' as column_name,
        0 as rows_without

)

select * from empty
where rows_without > 0
