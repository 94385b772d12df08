{#- Everything that DuckDB and Spark spell differently. Models use no dialect of their own. -#}

{# A timestamp that is an instant. #}
{% macro instant_type() %}{{ return(adapter.dispatch('instant_type')()) }}{% endmacro %}
{% macro duckdb__instant_type() %}{{ return('timestamptz') }}{% endmacro %}
{% macro spark__instant_type() %}{{ return('timestamp') }}{% endmacro %}

{% macro float_list_type() %}{{ return(adapter.dispatch('float_list_type')()) }}{% endmacro %}
{% macro duckdb__float_list_type() %}{{ return('float[]') }}{% endmacro %}
{% macro spark__float_list_type() %}{{ return('array<float>') }}{% endmacro %}

{# A group's values as a list of floats, in the order of some columns; a value is a list itself. #}
{% macro floats_in_order(values, order) %}{{ return(adapter.dispatch('floats_in_order')(values, order)) }}{% endmacro %}
{% macro duckdb__floats_in_order(values, order) -%}
    cast(flatten(list([{{ values | join(', ') }}] order by {{ order | join(', ') }})) as float[])
{%- endmacro %}
{% macro spark__floats_in_order(values, order) -%}
    cast(flatten(transform(
        array_sort(collect_list(struct({{ order | join(', ') }}, array({{ values | join(', ') }}) as shown_values))),
        item -> item.shown_values
    )) as array<float>)
{%- endmacro %}

{# Microseconds since 1970 of an instant, as bigint; all arithmetic on time is done on these. #}
{% macro microseconds(instant) %}{{ return(adapter.dispatch('microseconds')(instant)) }}{% endmacro %}
{% macro duckdb__microseconds(instant) %}epoch_us({{ instant }}){% endmacro %}
{% macro spark__microseconds(instant) %}unix_micros({{ instant }}){% endmacro %}

{# Its inverse. #}
{% macro instant(microseconds) %}{{ return(adapter.dispatch('instant')(microseconds)) }}{% endmacro %}
{% macro duckdb__instant(microseconds) %}make_timestamptz({{ microseconds }}){% endmacro %}
{% macro spark__instant(microseconds) %}timestamp_micros({{ microseconds }}){% endmacro %}

{# Days since 1970 of a date, as bigint, and a date some days away. #}
{% macro day_number(day) %}{{ return(adapter.dispatch('day_number')(day)) }}{% endmacro %}
{% macro duckdb__day_number(day) %}cast({{ day }} - cast('1970-01-01' as date) as bigint){% endmacro %}
{% macro spark__day_number(day) %}cast(datediff({{ day }}, cast('1970-01-01' as date)) as bigint){% endmacro %}

{% macro days_after(day, days) %}{{ return(adapter.dispatch('days_after')(day, days)) }}{% endmacro %}
{% macro duckdb__days_after(day, days) %}cast({{ day }} + {{ days }} as date){% endmacro %}
{% macro spark__days_after(day, days) %}date_add({{ day }}, {{ days }}){% endmacro %}

{# Removes the days that a run replaces, and where meta.by_user says that rows of other days depend on them,
   all rows of the users of these days. Spark's days are taken away before (training.warehouse.on_spark): it
   overwrites the days that the new rows have, and a day that has none of them any more is not among these. #}
{% macro clear_window() %}{{ return(adapter.dispatch('clear_window')()) }}{% endmacro %}
{% macro default__clear_window() %}
    {%- if is_incremental() -%}
        delete from {{ this }} where
        {% if model.config.meta.by_user -%}
            user_id in (
                select user_id from {{ this }} where {{ in_window('dt') }}
                union
                select user_id from {{ ref('dim_users') }} where {{ in_window('dt') }}
            )
        {%- else -%}
            {{ in_window('dt') }}
        {%- endif -%}
    {%- endif -%}
{% endmacro %}
{% macro spark__clear_window() %}{% endmacro %}

{# What dbt's unit tests write: a list, as Python does. #}
{% macro spark__safe_cast(field, type) -%}
    {%- if field is sequence and field is not string -%}
        cast(array({{ field | join(', ') }}) as {{ type }})
    {%- else -%}
        cast({{ field }} as {{ type }})
    {%- endif -%}
{%- endmacro %}
