{# Columns of the upstream predictions. #}
{% macro head_columns() %}
    {%- set names = [] -%}
    {%- for head in var('heads') -%}{%- do names.append('p_' ~ head) -%}{%- endfor -%}
    {{ return(names) }}
{% endmacro %}

{# Columns as the log's contract declares them, name and type, with the types as the engine spells them. #}
{% macro lake_columns(declared) %}
    {%- set types = {
        'int64': 'bigint', 'timestamp[us, UTC]': instant_type(), 'list<float>': float_list_type(),
    } -%}
    {%- set columns = {} -%}
    {%- for column in declared -%}
        {%- do columns.update({column.name: types.get(column.type, column.type)}) -%}
    {%- endfor -%}
    {{ return(columns) }}
{% endmacro %}

{# A landed table, or an empty one of the same columns when nothing of it was ever landed:
   KuaiRand's logs bring no decisions, and users are optional. Days that did not pass validation
   (MTF_HELD_DAYS) are left out. #}
{% macro lake(table, columns) %}
    {%- set relation = source('lake', table) -%}
    {%- set held = (env_var('MTF_HELD_DAYS', '') if execute else '').split() -%}
    {%- if table in var('landed') and held -%}
        (select * from {{ relation }} where dt not in (
            {%- for day in held -%}cast('{{ day }}' as date){{ ', ' if not loop.last }}{%- endfor -%}
        )) as without_held_days
    {%- elif table in var('landed') -%}
        {{ relation }}
    {%- else -%}
        (
            select
                {% for name, type in columns.items() -%}
                cast(null as {{ type }}) as {{ adapter.quote(name) }},
                {% endfor -%}
                cast(null as date) as dt
            where 1 = 0
        ) as nothing_landed
    {%- endif -%}
{% endmacro %}

{# No rows, of the declared columns and types. #}
{% macro lake_shape(columns) -%}
    select
        {% for column in columns -%}
        cast(null as {{ column.data_type }}) as {{ adapter.quote(column.name) }}{{ ',' if not loop.last }}
        {% endfor %}
{%- endmacro %}

{# Names and types of a query's columns, as the engine spells them. #}
{% macro schema_of(query) %}
    {%- set types = {} -%}
    {%- for column in adapter.get_column_schema_from_query(query) -%}
        {%- do types.update({column.name: column.dtype}) -%}
    {%- endfor -%}
    {{ return(types) }}
{% endmacro %}
