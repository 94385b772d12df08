{# Is a row of this local day replaced by this run? #}
{% macro in_window(column) -%}
    {{ column }} between cast('{{ var("first_day") }}' as date) and cast('{{ var("last_day") }}' as date)
{%- endmacro %}

{# The window and the days on each side that a session can reach into, up to the last known day. #}
{% macro around_window(column) -%}
    {{ column }} between {{ days_after("cast('" ~ var("first_day") ~ "' as date)", -reach_days()) }}
    and {{ days_after("cast('" ~ var("last_day") ~ "' as date)", reach_days()) }}
    and {{ column }} <= cast('{{ var("horizon_day") }}' as date)
{%- endmacro %}

{# Days that one idle gap can span, beyond the day it begins on. #}
{% macro reach_days() %}{{ return(1 + (var('session_gap_minutes') // 1440) | int) }}{% endmacro %}

{% macro gap_microseconds() %}{{ return((var('session_gap_minutes') * 60000000) | round | int) }}{% endmacro %}

{# The instant of the local midnight that ends a local day. #}
{% macro end_of_day(day) -%}
    {{ instant('(' ~ day_number(day) ~ ' + 1) * 86400000000 - (' ~ var('utc_offset_hours') ~ ') * 3600000000') }}
{%- endmacro %}
