{# The days, by the local calendar, that a run (of MTF_DAY) replaces (MTF_FIRST_DAY to MTF_LAST_DAY; from
   MTF_LOOK_BACK_DAY on where meta.look_back says that a row can change after its day), and the last day
   whose rows it may see (MTF_HORIZON_DAY); all days where they are not given. They are environment
   variables that are read at execution only, because a changed dbt variable makes dbt parse the whole
   project again, which takes longer than a small day's build. #}
{% macro run_day(name, otherwise) -%}
    cast('{{ env_var("MTF_" ~ name, otherwise) if execute else otherwise }}' as date)
{%- endmacro %}
{% macro first_day() -%}
    {{ look_back_day() if model.config.meta.look_back else run_day('FIRST_DAY', '1970-01-01') }}
{%- endmacro %}
{% macro look_back_day() %}{{ run_day('LOOK_BACK_DAY', '1970-01-01') }}{% endmacro %}
{% macro last_day() %}{{ run_day('LAST_DAY', '9999-12-30') }}{% endmacro %}
{% macro horizon_day() %}{{ run_day('HORIZON_DAY', '9999-12-30') }}{% endmacro %}

{# Is a row of this local day replaced by this run? #}
{% macro in_window(column) -%}
    {{ column }} between {{ first_day() }} and {{ last_day() }}
{%- endmacro %}

{# The window and the days on each side that a session can reach into, up to the last known day. #}
{% macro around_window(column) -%}
    {{ column }} between {{ days_after(first_day(), -reach_days()) }}
    and {{ days_after(last_day(), reach_days()) }}
    and {{ column }} <= {{ horizon_day() }}
{%- endmacro %}

{# Every model has dt, and every data test looks at the days that this run replaced, and back. #}
{% macro get_where_subquery(relation) -%}
    (select * from {{ relation }} where dt between {{ look_back_day() }} and {{ last_day() }}) as in_window
{%- endmacro %}

{# The instant at which a local day ends: days of 23 and 25 hours end at their midnight, too. #}
{% macro end_of_day(day) -%}
    {%- set next = days_after(day, 1) -%}
    {{ instant(day_number(next) ~ ' * 86400000000 - cast(' ~ midnight_offset(next) ~ ' as bigint) * 1000000') }}
{%- endmacro %}

{# Seconds by which a local day starts before UTC's; engines know time zones of their own, and not the same. #}
{% macro midnight_offset(day) -%}
    {%- set runs = var('midnights') -%}
    {%- if runs | length == 1 -%}
        ({{ runs[0].offset_s }})
    {%- else -%}
        case
        {%- for run in runs[1:] | reverse %}
            when {{ day }} >= cast('{{ run.day }}' as date) then {{ run.offset_s }}
        {%- endfor %}
            else {{ runs[0].offset_s }}
        end
    {%- endif -%}
{%- endmacro %}
