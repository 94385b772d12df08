{# Columns of the upstream predictions. #}
{% macro head_columns() %}
    {%- set names = [] -%}
    {%- for head in var('heads') -%}{%- do names.append('p_' ~ head) -%}{%- endfor -%}
    {{ return(names) }}
{% endmacro %}

{# A landed table, or an empty one of the same columns when nothing of it was ever landed:
   KuaiRand's logs bring no decisions, and users are optional. #}
{% macro lake(table, columns) %}
    {%- set relation = source('lake', table) -%}
    {%- if table in var('landed') -%}
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
