{# A landed table has the declared columns, of the declared types, and each required one has values on the day
   that is run (other days may have been landed before the settings named the column). A row a difference: what is gone, retyped or empty fails, and new columns are listed
   beside it, because one of them may be the lost one's new name. That is for a person to judge: nothing is
   filled in or cast to fit. A new column alone is no fault: landing names it, and no model reads it. #}
{% test as_declared(model, table) %}
{{ config(fail_calc="coalesce(sum(case when change <> 'new' then 1 else 0 end), 0)") }}
{%- set differences, required = [], [] -%}
{%- if execute and table in var('landed') -%}
    {%- set declared = graph.sources['source.mtf.lake.' ~ table].columns.values() -%}
    {%- set expected = schema_of(lake_shape(declared)) -%}
    {%- set found = schema_of('select * from ' ~ source('lake', table) ~ ' where 1 = 0') -%}
    {%- for name, type in found.items() if name not in expected -%}
        {%- do differences.append((name, 'new', type)) -%}
    {%- endfor -%}
    {%- for name, type in expected.items() if name not in found -%}
        {%- do differences.append((name, 'gone', type)) -%}
    {%- endfor -%}
    {%- for name, type in expected.items() if name in found and type != found[name] -%}
        {%- do differences.append((name, 'retyped', found[name] ~ ', not ' ~ type)) -%}
    {%- endfor -%}
    {%- for column in declared if column.config.meta.required and column.name in found -%}
        {%- do required.append(column.name) -%}
    {%- endfor -%}
{%- endif %}
with counted as (

    select
        {% for name in required -%}
        count({{ adapter.quote(name) }}) as {{ adapter.quote(name) }},
        {% endfor -%}
        dt
    from {% if required %}{{ model }}{% else %}(select cast(null as date) as dt where 1 = 0) as nothing{% endif %}
    {%- if env_var('MTF_DAY', '') %}
    where dt = {{ run_day('DAY', '1970-01-01') }}
    {%- endif %}
    group by dt

)

{% for name, change, type in differences -%}
select
    '{{ name }}' as column_name,
    '{{ change }}' as change,
    '{{ type }}' as type,
    cast(null as date) as dt
union all
{% endfor -%}
{% for name in required -%}
select
    '{{ name }}' as column_name,
    'empty' as change,
    '' as type,
    dt
from counted
where {{ adapter.quote(name) }} = 0
union all
{% endfor -%}
select
    '' as column_name,
    '' as change,
    '' as type,
    dt
from counted
where 1 = 0
{% endtest %}
